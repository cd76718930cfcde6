//! The numbers that everybody shares.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The number before the first.
            pub const ZERO: Self = Self(0);

            /// The next one; the last number has none.
            pub fn next(self) -> Option<Self> {
                self.0.checked_add(1).map(Self)
            }

            /// The number `n` further on, if there is one.
            pub fn checked_add(self, n: u64) -> Option<Self> {
                self.0.checked_add(n).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A record's place in the whole journal: contiguous, from 1. Zero is "before the first".
    Position
}

number! {
    /// A record's place in its stream: contiguous, from 1. Zero is "before the first".
    Seq
}

number! {
    /// A stream, named by the position of the record that opened it.
    StreamId
}

/// A number of bytes that is known to fit into memory, or the largest there is: the crate is for
/// 64-bit targets, where both are the same.
pub(crate) fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// An instant in nanoseconds since 1970-01-01T00:00:00Z, as the clock gave it: never clamped,
/// never compared to decide an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub i64);

impl Time {
    /// RFC 3339 in UTC with the given number of fraction digits, cut and not rounded.
    fn rfc3339(self, digits: usize) -> String {
        let seconds = self.0.div_euclid(1_000_000_000);
        let nanos = self.0.rem_euclid(1_000_000_000);
        // Every i64 of nanoseconds lies between the years 1677 and 2262, which chrono can show.
        let stamp = chrono::DateTime::from_timestamp(seconds, 0).unwrap_or_default();
        let fraction = format!("{nanos:09}");
        format!("{}.{}Z", stamp.format("%Y-%m-%dT%H:%M:%S"), &fraction[..digits])
    }

    /// `2026-03-22T00:13:40.123Z`: what projected files show.
    pub fn to_millis_string(self) -> String {
        self.rfc3339(3)
    }

    /// `2026-03-22T00:13:40.123456789Z`: the whole of what is stored.
    pub fn to_nanos_string(self) -> String {
        self.rfc3339(9)
    }

    /// The UTC day, `2026-03-22`.
    pub fn day(self) -> String {
        self.rfc3339(3)[..10].to_owned()
    }

    /// Reads an RFC 3339 instant.
    pub fn parse(text: &str) -> Option<Self> {
        chrono::DateTime::parse_from_rfc3339(text).ok()?.timestamp_nanos_opt().map(Self)
    }

    /// Milliseconds from `earlier` to this instant, zero where it is not later.
    pub fn millis_since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0) / 1_000_000).unwrap_or(0)
    }
}

/// What must be the same for unsynced bytes of then to be in the page cache of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Session {
    /// The kernel's id of this boot.
    pub boot: [u8; 16],
    /// The device the data directory is on.
    pub device: u64,
    /// The mount it is seen through.
    pub mount: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_cut_not_rounded_also_before_1970() {
        assert_eq!(Time(1_774_138_420_123_999_999).to_millis_string(), "2026-03-22T00:13:40.123Z");
        assert_eq!(Time(-1).to_nanos_string(), "1969-12-31T23:59:59.999999999Z");
        assert_eq!(Time(i64::MIN).to_millis_string(), "1677-09-21T00:12:43.145Z");
        assert_eq!(Time(i64::MAX).to_nanos_string(), "2262-04-11T23:47:16.854775807Z");
        assert_eq!(Time::parse("2026-03-22T01:13:40.5+01:00"), Some(Time(1_774_138_420_500_000_000)));
    }
}
