//! Points in time and lengths of time, as numbers that come in from outside: nothing here reads a clock.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in time: milliseconds since 1970-01-01T00:00:00Z. RFC 3339 text in JSON, a number on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The point `ms` milliseconds after the start of 1970.
    pub fn from_unix_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the start of 1970.
    pub fn unix_ms(self) -> i64 {
        self.0
    }

    /// The point `length` later; the largest point when that would overflow.
    #[must_use]
    pub fn after(self, length: Length) -> Self {
        Self(self.0.saturating_add(i64::try_from(length.0).unwrap_or(i64::MAX)))
    }

    /// How much later `self` is than `earlier`; nothing when it is not later.
    pub fn since(self, earlier: Self) -> Length {
        Length(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_i64(self.0) }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            let time: jiff::Timestamp = text.parse().map_err(de::Error::custom)?;
            Ok(Self(time.as_millisecond()))
        } else {
            i64::deserialize(deserializer).map(Self)
        }
    }
}

/// A length of time in milliseconds, written `250ms`, `10s`, `5m`, `1h30m` or `2d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Length(u64);

#[cfg(feature = "planning")]
impl schemars::JsonSchema for Length {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Length".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "description": "A length of time such as 250ms, 10s, 5m, 1h30m or 2d.", "pattern": "^([0-9]+(ms|s|m|h|d))+$" })
    }
}

/// Why a text is no length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a length of time: write for example 250ms, 10s, 5m, 1h30m or 2d")]
pub struct InvalidLength(String);

/// The units of a length, the largest first, with their milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Length {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// A length of `ms` milliseconds.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// A length of `seconds` seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000))
    }

    /// The length in milliseconds.
    pub const fn ms(self) -> u64 {
        self.0
    }

    fn text(self) -> String {
        if self.0 == 0 {
            return "0s".to_owned();
        }
        let mut text = String::with_capacity(8);
        let mut rest = self.0;
        for (unit, unit_ms) in UNITS {
            if rest >= unit_ms {
                push_number(&mut text, rest / unit_ms);
                text.push_str(unit);
                rest %= unit_ms;
            }
        }
        text
    }

    /// The sum of two lengths.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// Appends a number. There is a length in every check of every release: this is quicker than formatting.
fn push_number(text: &mut String, number: u64) {
    if number >= 10 {
        push_number(text, number / 10);
    }
    text.push(char::from(b'0' + (number % 10) as u8));
}

impl From<Length> for std::time::Duration {
    fn from(length: Length) -> Self {
        Self::from_millis(length.0)
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text())
    }
}

impl FromStr for Length {
    type Err = InvalidLength;

    fn from_str(text: &str) -> Result<Self, InvalidLength> {
        let invalid = || InvalidLength(text.to_owned());
        let mut rest = text.trim();
        let mut total: u64 = 0;
        if rest.is_empty() {
            return Err(invalid());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
            let number: u64 = rest[..digits].parse().map_err(|_| invalid())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let (_, unit_ms) = UNITS.iter().find(|(unit, _)| *unit == &rest[..letters]).ok_or_else(invalid)?;
            rest = &rest[letters..];
            total = number.checked_mul(*unit_ms).and_then(|ms| ms.checked_add(total)).ok_or_else(invalid)?;
        }
        Ok(Self(total))
    }
}

impl Serialize for Length {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&self.text())
        } else {
            serializer.serialize_u64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            u64::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_read_back_as_they_are_written() {
        for text in ["250ms", "10s", "5m", "1h30m", "2d", "1m30s500ms", "0s"] {
            let length: Length = text.parse().expect(text);
            assert_eq!(length.to_string(), text);
        }
        for bad in ["", "10", "s", "10x", "-1s", "1.5s", "99999999999999999999s", "99999999999999999d"] {
            assert!(bad.parse::<Length>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_timestamp_is_rfc_3339_in_json() {
        let json = serde_json::to_string(&Timestamp::from_unix_ms(1_795_391_999_123)).expect("json");
        assert_eq!(json, "\"2026-11-22T23:59:59.123Z\"");
        let back: Timestamp = serde_json::from_str(&json).expect("back");
        assert_eq!(back.unix_ms(), 1_795_391_999_123);
    }

    #[test]
    fn adding_saturates_and_an_earlier_time_is_no_time_since() {
        let late = Timestamp::from_unix_ms(i64::MAX);
        assert_eq!(late.after(Length::from_ms(u64::MAX)), late);
        assert_eq!(Timestamp::from_unix_ms(1).since(Timestamp::from_unix_ms(5)), Length::ZERO);
    }
}
