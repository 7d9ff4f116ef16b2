//! Typed identifiers. Every name that crosses a module boundary has a type of its own, so that a pack can never be
//! passed where a chunk is meant.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Why a text is not the identifier it was taken for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a {what}: {rule}")]
pub struct InvalidId {
    pub what: &'static str,
    pub text: String,
    pub rule: &'static str,
}

macro_rules! binary_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        /// A CBOR byte string of 16.
        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let bytes = d.bytes()?.try_into();
                bytes.map(Self).map_err(|_| minicbor::decode::Error::message(concat!("a ", $what, " has 16 bytes")))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let bad = || InvalidId { what: $what, text: text.into(), rule: "expected 32 lower-case hexadecimal digits" };
                if text.len() != 32 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                    return Err(bad());
                }
                let mut out = [0; 16];
                for (byte, pair) in out.iter_mut().zip(0..) {
                    *byte = u8::from_str_radix(&text[pair * 2..pair * 2 + 2], 16).map_err(|_| bad())?;
                }
                Ok(Self(out))
            }
        }
    };
}

binary_id!(
    /// Names a repository; chosen at random by `init`.
    RepositoryId,
    "repository id"
);
binary_id!(
    /// Names a pack inside its lineage; chosen at random by the writer.
    PackId,
    "pack id"
);
binary_id!(
    /// Keyed BLAKE3 of a chunk's plaintext, first 128 bits (see `docs/format.md`, "Chunk ids").
    ChunkId,
    "chunk id"
);

/// The name of a source, and of its lineage in the repository: a DNS label (RFC 1123).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceName(String);

impl SourceName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SourceName {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let fine = (1..=63).contains(&text.len())
            && text.bytes().all(|b| inner(b) || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if fine {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId {
                what: "source name",
                text: text.to_owned(),
                rule: "expected 1 to 63 lower-case letters, digits and hyphens, no hyphen at either end",
            })
        }
    }
}

impl serde::Serialize for SourceName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for SourceName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|why: InvalidId| serde::de::Error::custom(why.rule))
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A snapshot's number in its lineage, counted from 1.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    minicbor::Encode,
    minicbor::Decode,
    serde::Deserialize,
    serde::Serialize,
)]
#[cbor(transparent)]
pub struct Sequence(#[n(0)] pub u64);

impl Sequence {
    pub const MAX: u64 = 9_999_999_999;

    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The first number above this one that is not `taken`.
    #[must_use]
    pub fn next_free(self, taken: &BTreeSet<Self>) -> Self {
        let mut next = self.next();
        while taken.contains(&next) {
            next = next.next();
        }
        next
    }

    /// The object name: the distance from the largest number first, so that a listing begins with the newest.
    #[must_use]
    pub fn object_name(self) -> String {
        format!("{:010}-{}", Self::MAX - self.0.min(Self::MAX), self.0)
    }

    /// The inverse of [`Sequence::object_name`]; `None` for any other name.
    #[must_use]
    pub fn from_object_name(name: &str) -> Option<Self> {
        let (_, number) = name.split_once('-')?;
        let sequence = Self(number.parse().ok()?);
        (sequence.0 >= 1 && sequence.0 <= Self::MAX && sequence.object_name() == name).then_some(sequence)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_sequence_sorts_first() {
        let mut names: Vec<_> = [1, 2, 10, 5000].map(|n| Sequence(n).object_name()).to_vec();
        names.sort();
        let back: Vec<_> = names.iter().map(|n| Sequence::from_object_name(n).unwrap().0).collect();
        assert_eq!(back, [5000, 10, 2, 1]);
    }

    #[test]
    fn foreign_names_are_not_sequences() {
        for name in ["", "1", "9999999998-2", "9999999998-1x", "0-0", "9999999999-0", "0000000000-99999999999"] {
            assert_eq!(Sequence::from_object_name(name), None, "{name}");
        }
    }

    #[test]
    fn source_names_are_dns_labels() {
        assert!("etcd-main".parse::<SourceName>().is_ok());
        for bad in ["", "-a", "a-", "A", "a/b", "_keys", "..", &"a".repeat(64)] {
            assert!(bad.parse::<SourceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn binary_ids_round_trip() {
        let id = PackId(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse::<PackId>(), Ok(id));
        assert!("00".parse::<PackId>().is_err());
        assert!("G".repeat(32).parse::<PackId>().is_err());
    }
}
