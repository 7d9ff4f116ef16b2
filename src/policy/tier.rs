use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// How much may be lost and how long recovery may take. Ordered: the stricter tier is the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    Critical,
    Standard,
    Development,
}

impl Tier {
    /// Recovery time objective: the longest that bringing the system back may take.
    #[must_use]
    pub const fn rto(self) -> Duration {
        Duration::from_mins(match self {
            Self::Critical => 30,
            Self::Standard => 2 * 60,
            Self::Development => 4 * 60,
        })
    }

    /// Recovery point objective: the greatest age that the newest recovery point may reach.
    #[must_use]
    pub const fn rpo(self) -> Duration {
        Duration::from_mins(match self {
            Self::Critical => 5,
            Self::Standard => 30,
            Self::Development => 2 * 60,
        })
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Critical => "critical",
            Self::Standard => "standard",
            Self::Development => "development",
        })
    }
}
