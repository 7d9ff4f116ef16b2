//! The recovery identity among several people: any `threshold` of its shares give it back, fewer say nothing about it.
//!
//! Shamir's scheme over GF(2^8), byte by byte over the identity's 32. A share is a short text for paper: every line of it
//! has a checksum of its own, so that a typing error is found and named, and the whole has one too. What shares combine
//! to is believed when it is the identity of the recipient that they name. Pure: nothing is read or written here.

use crate::id::RepositoryId;
use crate::repo::keys::{Secret32, hex, random, unhex};
use crate::repo::root::Identity;
use bech32::{Bech32, Hrp};
use std::convert::Infallible;
use std::fmt::Write as _;
use vsss_rs::Gf256;
use zeroize::Zeroizing;

const TITLE: &str = "LIFEBOAT SHARE";
const HRP: &str = "age-secret-key-";
/// Bytes in a line of a share's text.
const LINE: usize = 8;
/// More would be more than people.
pub const MOST: u8 = 32;

/// What is wrong with shares, or with one of them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ShareError {
    #[error("no share begins here: a line {TITLE} with its number is missing")]
    NotAShare,
    #[error("share {share}, line {line}: {problem}")]
    Line { share: u8, line: String, problem: &'static str },
    #[error("share {share} is of repository {found}, the others are of {expected}")]
    OtherRepository { share: u8, found: RepositoryId, expected: RepositoryId },
    #[error(
        "share {share} was made at another time than share {other}; only shares that were made together fit together"
    )]
    OtherSet { share: u8, other: u8 },
    #[error("share {0} is given twice with different contents")]
    Contradiction(u8),
    #[error("{needed} shares are needed, and there {}: {}", are(.given.len()), list(given))]
    TooFew { needed: u8, given: Vec<u8> },
    #[error(
        "shares {} do not give the identity of {recipient}: one of them was altered, checksums and all",
        list(given)
    )]
    DoNotFit { recipient: String, given: Vec<u8> },
    #[error("{0}")]
    Refused(String),
}

fn list(numbers: &[u8]) -> String {
    numbers.iter().map(u8::to_string).collect::<Vec<_>>().join(", ")
}

fn are(count: usize) -> String {
    if count == 1 { "is 1".into() } else { format!("are {count}") }
}

/// One person's part.
#[derive(Clone)]
pub struct Share {
    pub repository: RepositoryId,
    /// Whose private half the shares give: `age1…`.
    pub recipient: String,
    /// The same for shares that were made together.
    set: [u8; 4],
    /// From 1.
    pub number: u8,
    pub threshold: u8,
    pub shares: u8,
    secret: Secret32,
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Share({} of {}, any {})", self.number, self.shares, self.threshold)
    }
}

/// The operating system's random numbers, for the polynomials.
struct System;

impl rand_core::TryRng for System {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_le_bytes(random()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_le_bytes(random()))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for byte in bytes {
            [*byte] = random();
        }
        Ok(())
    }
}

impl rand_core::TryCryptoRng for System {}

/// Splits an identity.
///
/// # Errors
/// `Refused` for numbers that make no sense.
pub fn split(
    identity: &Identity,
    repository: RepositoryId,
    threshold: u8,
    shares: u8,
) -> Result<Vec<Share>, ShareError> {
    if threshold < 2 || threshold > shares || shares > MOST {
        let limits = format!("expected 2 <= threshold <= shares <= {MOST}, not {threshold} of {shares}");
        return Err(ShareError::Refused(limits));
    }
    let text = Zeroizing::new(identity.to_text());
    let (_, secret) = bech32::decode(&text).map_err(|why| ShareError::Refused(format!("read the identity: {why}")))?;
    let secret = Zeroizing::new(secret);
    let split = Gf256::split_bytes(usize::from(threshold), usize::from(shares), secret.as_slice(), System)
        .map_err(|why| ShareError::Refused(format!("split the identity: {why}")))?;
    let set = random();
    let share = |bytes: Vec<u8>| {
        let bytes = Zeroizing::new(bytes);
        let (number, value) = bytes.split_first()?;
        let mut secret = Secret32([0; 32]);
        secret.0.copy_from_slice(value.try_into().ok().map(|value: &[u8; 32]| &value[..])?);
        let recipient = identity.public();
        Some(Share { repository, recipient, set, number: *number, threshold, shares, secret })
    };
    let shares: Option<Vec<_>> = split.into_iter().map(share).collect();
    shares.ok_or_else(|| ShareError::Refused("the identity does not have 32 bytes".into()))
}

/// Gives the identity back. A share that is given twice counts once.
///
/// # Errors
/// Which share is wrong, where that can be known.
pub fn combine(shares: &[Share]) -> Result<Identity, ShareError> {
    let Some(first) = shares.first() else { return Err(ShareError::TooFew { needed: 2, given: Vec::new() }) };
    let mut distinct: Vec<&Share> = Vec::new();
    for share in shares {
        if share.repository != first.repository {
            let (found, expected) = (share.repository, first.repository);
            return Err(ShareError::OtherRepository { share: share.number, found, expected });
        }
        if (share.set, share.threshold, &share.recipient) != (first.set, first.threshold, &first.recipient) {
            return Err(ShareError::OtherSet { share: share.number, other: first.number });
        }
        match distinct.iter().find(|known| known.number == share.number) {
            None => distinct.push(share),
            Some(known) if known.secret.0 == share.secret.0 => {}
            Some(_) => return Err(ShareError::Contradiction(share.number)),
        }
    }
    let given: Vec<u8> = distinct.iter().map(|share| share.number).collect();
    if distinct.len() < usize::from(first.threshold) {
        return Err(ShareError::TooFew { needed: first.threshold, given });
    }
    let points: Zeroizing<Vec<Vec<u8>>> =
        Zeroizing::new(distinct.iter().map(|share| [&[share.number][..], &share.secret.0].concat()).collect());
    let no = |why: &dyn std::fmt::Display| ShareError::Refused(format!("combine the shares: {why}"));
    let secret = Zeroizing::new(Gf256::combine_bytes(&*points).map_err(|why| no(&why))?);
    let hrp = Hrp::parse(HRP).map_err(|why| no(&why))?;
    let text = Zeroizing::new(bech32::encode_upper::<Bech32>(hrp, &secret).map_err(|why| no(&why))?);
    let identity = Identity::from_text(&text).map_err(|why| no(&why))?;
    if identity.public() == first.recipient {
        Ok(identity)
    } else {
        Err(ShareError::DoNotFit { recipient: first.recipient.clone(), given })
    }
}

impl Share {
    /// The text that a person keeps.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let Self { repository, recipient, number, threshold, shares, .. } = self;
        let mut text = Zeroizing::new(format!(
            "{TITLE} {number}\n\
             any {threshold} of {shares} open everything in repository\n\
             repository {repository}\n\
             recipient  {recipient}\n\
             set        {} {}\n",
            hex(&self.set),
            hex(&self.sum()),
        ));
        for (line, bytes) in (1..).zip(self.secret.0.chunks(LINE)) {
            let _ = write!(text, "{line} ");
            for pair in bytes.chunks(2) {
                let _ = write!(text, " {}", &*Zeroizing::new(hex(pair)));
            }
            let _ = writeln!(text, "  {}", hex(&self.line_sum(line, bytes)));
        }
        text
    }

    /// Reads a share; what comes before its first line, and empty lines, are passed over. Capitals and spaces do not matter.
    ///
    /// # Errors
    /// Which share, and which line of it, is wrong.
    pub fn from_text(text: &str) -> Result<Self, ShareError> {
        let lower = Zeroizing::new(text.to_ascii_lowercase());
        let title = TITLE.to_ascii_lowercase();
        let mut lines = lower.lines().map(str::trim).filter(|line| !line.is_empty());
        let number = lines.find_map(|line| line.strip_prefix(&title)).ok_or(ShareError::NotAShare)?;
        let number: u8 = number.trim().parse().map_err(|_| ShareError::NotAShare)?;
        let wrong = |line: &str, problem| ShareError::Line { share: number, line: line.into(), problem };
        let mut after = |name: &'static str| {
            let rest = lines.next().and_then(|line| line.strip_prefix(name)).map(str::trim);
            rest.map(str::to_owned).map(Zeroizing::new).ok_or_else(|| wrong(name, "it is missing"))
        };
        let counts = after("any ")?;
        let mut words = counts.split(' ');
        let (threshold, shares) =
            (words.next().and_then(|n| n.parse().ok()), words.nth(1).and_then(|n| n.parse().ok()));
        let (Some(threshold), Some(shares)) = (threshold, shares) else {
            return Err(wrong("any", "it has no numbers"));
        };
        let repository = after("repository")?.parse().map_err(|_| wrong("repository", "an id has 32 digits"))?;
        let recipient = after("recipient")?.to_string();
        let set = after("set")?;
        let (set, sum) = set.split_once(' ').ok_or_else(|| wrong("set", "it has two groups of 8 digits"))?;
        let set = unhex(set).ok_or_else(|| wrong("set", "it has two groups of 8 digits"))?;
        let sum: [u8; 4] = unhex(sum.trim()).ok_or_else(|| wrong("set", "it has two groups of 8 digits"))?;
        let mut this = Self { repository, recipient, set, number, threshold, shares, secret: Secret32([0; 32]) };
        for (line, at) in (1..).zip((0..32).step_by(LINE)) {
            let name = line.to_string();
            let rest = lines.next().ok_or_else(|| wrong(&name, "it is missing"))?;
            let (first, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            if first != name {
                return Err(wrong(&name, "it is missing, or does not begin with its number"));
            }
            let digits: Zeroizing<String> = Zeroizing::new(rest.split_whitespace().collect());
            let bytes: Option<Zeroizing<[u8; LINE + 2]>> = unhex(&digits).map(Zeroizing::new);
            let bytes = bytes.ok_or_else(|| wrong(&name, "it should have 20 digits, 0 to 9 and a to f"))?;
            if this.line_sum(line, &bytes[..LINE]) != bytes[LINE..] {
                return Err(wrong(&name, "a digit is wrong, here or in the number of the share"));
            }
            this.secret.0[at..at + LINE].copy_from_slice(&bytes[..LINE]);
        }
        if this.sum() != sum {
            return Err(wrong(
                "1 to 5",
                "something in the first lines is wrong (numbers, repository, recipient or set)",
            ));
        }
        Ok(this)
    }

    fn line_sum(&self, line: u8, bytes: &[u8]) -> [u8; 2] {
        let hash = blake3::hash(&Zeroizing::new([&[self.number, line], bytes].concat()));
        [hash.as_bytes()[0], hash.as_bytes()[1]]
    }

    /// Of all that is in the share.
    fn sum(&self) -> [u8; 4] {
        let mut hasher = blake3::Hasher::new_derive_key("lifeboat.dev 2026 share");
        hasher.update(&self.repository.0).update(&self.set).update(&[self.number, self.threshold, self.shares]);
        hasher.update(&self.secret.0).update(self.recipient.as_bytes());
        let mut sum = [0; 4];
        sum.copy_from_slice(&hasher.finalize().as_bytes()[..4]);
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: RepositoryId = RepositoryId([7; 16]);

    /// `count` of the shares, chosen by `lot`.
    fn some(mut shares: Vec<Share>, count: usize, mut lot: u64) -> Vec<Share> {
        let mut chosen = Vec::new();
        while chosen.len() < count {
            chosen.push(shares.swap_remove((lot % shares.len() as u64) as usize));
            lot = lot.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) >> 1;
        }
        chosen
    }

    proptest! {
        #[test]
        fn any_m_of_n_combine_and_fewer_do_not(threshold in 2u8..7, more in 0u8..6, lot: u64) {
            let identity = Identity::generate();
            let shares = split(&identity, ID, threshold, threshold + more).unwrap();
            let read: Vec<_> = shares.iter().map(|share| Share::from_text(&share.to_text()).unwrap()).collect();
            let enough = some(read.clone(), threshold.into(), lot);
            prop_assert_eq!(combine(&enough).unwrap().to_text(), identity.to_text());
            prop_assert_eq!(combine(&read).unwrap().to_text(), identity.to_text());
            let fewer = some(read.clone(), usize::from(threshold) - 1, lot);
            let refused = combine(&fewer).unwrap_err();
            prop_assert!(matches!(refused, ShareError::TooFew { .. }), "{}", refused);
            // Whoever lies about the threshold has no more of it.
            let lying: Vec<_> = fewer.into_iter().map(|share| Share { threshold: 1, ..share }).collect();
            prop_assert!(combine(&lying).is_err());
            // The same one twice is one.
            let twice = [&enough[1..], &enough[1..2]].concat();
            prop_assert!(combine(&twice).is_err());
        }

        /// Any character of a share's digits, any other in its place.
        #[test]
        fn a_wrong_digit_is_found_and_named(at in 0usize..400, digit in 0u8..16) {
            let share = &split(&Identity::generate(), ID, 3, 5).unwrap()[1];
            let text = share.to_text().to_string();
            let mut bytes = text.clone().into_bytes();
            let at = at % bytes.len();
            prop_assume!(bytes[at].is_ascii_hexdigit());
            bytes[at] = b"0123456789abcdef"[usize::from(digit)];
            let typed = String::from_utf8(bytes).unwrap();
            prop_assume!(!typed.eq_ignore_ascii_case(&text));
            let line = text[..at].matches('\n').count();
            // The words of the second line are for people.
            prop_assume!(line != 1 || text.as_bytes()[at].is_ascii_digit());
            match Share::from_text(&typed) {
                Err(ShareError::Line { share, line: named, .. }) => {
                    prop_assert!(share == 2 || line == 0, "{}", typed);
                    if line >= 5 {
                        prop_assert_eq!(named, (line - 4).to_string());
                    }
                }
                Err(ShareError::NotAShare) => prop_assert!(line < 2),
                other => prop_assert!(false, "{:?} from {}", other, typed),
            }
        }
    }

    #[test]
    fn shares_that_do_not_belong_together_are_told_apart() {
        let identity = Identity::generate();
        let ours = split(&identity, ID, 2, 3).unwrap();
        let other = split(&identity, RepositoryId([8; 16]), 2, 3).unwrap();
        let refused = combine(&[ours[0].clone(), other[1].clone()]).unwrap_err();
        assert!(matches!(refused, ShareError::OtherRepository { share: 2, .. }), "{refused}");
        let again = split(&identity, ID, 2, 3).unwrap();
        assert_eq!(
            combine(&[ours[0].clone(), again[1].clone()]).unwrap_err(),
            ShareError::OtherSet { share: 2, other: 1 }
        );
        let forged = Share { secret: Secret32([1; 32]), ..ours[2].clone() };
        let refused = combine(&[ours[0].clone(), forged]).unwrap_err();
        assert!(matches!(refused, ShareError::DoNotFit { .. }), "{refused}");
        assert!(refused.to_string().contains("shares 1, 3"), "{refused}");
        for (threshold, shares) in [(1, 3), (0, 0), (4, 3), (2, 200)] {
            assert!(split(&identity, ID, threshold, shares).is_err(), "{threshold} of {shares}");
        }
    }

    #[test]
    fn a_share_survives_how_people_write() {
        let share = &split(&Identity::generate(), ID, 2, 3).unwrap()[0];
        let text = share.to_text();
        assert!(text.lines().all(|line| line.len() <= 80), "{}", *text);
        let typed =
            format!("From the safe:\r\n\r\n{}", text.to_uppercase().replace('\n', "\r\n\r\n")).replace("  ", "   ");
        let read = Share::from_text(&typed).unwrap();
        assert_eq!((read.number, read.secret.0), (1, share.secret.0));
        assert_eq!(Share::from_text("nothing").unwrap_err(), ShareError::NotAShare);
        assert!(!format!("{share:?}").contains(&hex(&share.secret.0[..4])));
    }
}
