//! Numbers with units, as people write them. Pure.

use crate::link::shape::Outage;

/// A number and what follows it.
fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..end].parse::<f64>().ok().filter(|number| number.is_finite())?;
    Some((number, text[end..].trim()))
}

/// Bits per second: `2400`, `2400bit`, `64kbit`, `1.5mbit`.
///
/// # Errors
/// What a rate looks like.
pub fn rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no rate; write it like 2400bit, 64kbit or 1.5mbit");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "bit" | "bps" => 1.0,
        "k" | "kbit" => 1e3,
        "m" | "mbit" => 1e6,
        "g" | "gbit" => 1e9,
        _ => return Err(wrong()),
    };
    let bits = number * factor;
    if (1.0..=1e11).contains(&bits) { Ok(bits as u64) } else { Err(wrong()) }
}

/// Microseconds: `600ms`, `1.5s`, `10min`, `2h`.
///
/// # Errors
/// What a time looks like.
pub fn micros(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no time; write it like 600ms, 1.5s or 10min");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "min" => 60e6,
        "h" => 3600e6,
        _ => return Err(wrong()),
    };
    let micros = number * factor;
    if micros <= 1e15 { Ok(micros as u64) } else { Err(wrong()) }
}

/// Parts of a million: `5%`, `0.1%`.
///
/// # Errors
/// What a share looks like.
pub fn share(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is no share; write it like 5% or 0.1%, at most 100%");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    if unit == "%" && number <= 100.0 { Ok((number * 1e4).round() as u32) } else { Err(wrong()) }
}

/// `60s/10min`: up for the first time in every second one.
///
/// # Errors
/// What an outage looks like.
pub fn outage(text: &str) -> Result<Outage, String> {
    let wrong =
        || format!("`{text}` is no schedule; write it like 60s/10min: up for 60 s in every 10 minutes");
    let (up, every) = text.split_once('/').ok_or_else(wrong)?;
    let outage = Outage { up_us: micros(up)?, every_us: micros(every)? };
    if outage.up_us > 0 && outage.up_us < outage.every_us { Ok(outage) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_understood() {
        assert_eq!(rate("64kbit"), Ok(64_000));
        assert_eq!(rate("2400"), Ok(2400));
        assert_eq!(rate("1.5 mbit"), Ok(1_500_000));
        assert_eq!(micros("600ms"), Ok(600_000));
        assert_eq!(micros("1.5s"), Ok(1_500_000));
        assert_eq!(share("5%"), Ok(50_000));
        assert_eq!(share("0.01%"), Ok(100));
        assert_eq!(outage("60s/10min"), Ok(Outage { up_us: 60_000_000, every_us: 600_000_000 }));
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        for text in ["", "fast", "0bit", "-1kbit", "1e9", "64 kib", "1..2kbit"] {
            assert!(rate(text).is_err(), "{text}");
        }
        for text in ["", "5", "1.5 hours", "ms", "-1s"] {
            assert!(micros(text).is_err(), "{text}");
        }
        for text in ["5", "101%", "%", "-1%"] {
            assert!(share(text).is_err(), "{text}");
        }
        for text in ["60s", "10min/60s", "0s/10min", "60s/", "60/600"] {
            assert!(outage(text).is_err(), "{text}");
        }
    }
}
