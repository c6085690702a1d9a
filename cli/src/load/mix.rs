//! What the simulated providers refuse, as an option: `503:1,unregistered:0.1` in percent.

use simulator::{Script, Share};
use std::str::FromStr;

/// The words, in the order of the help.
const WORDS: &str = "429, 500, 503 and unregistered";

/// A mix of faults; empty when everything is served well.
#[derive(Debug, Clone, Default)]
pub struct Mix {
    /// As it was given.
    pub text: String,
    /// For the simulator.
    pub shares: Vec<Share>,
}

impl Mix {
    /// Is everything served well?
    pub fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }
}

fn script(word: &str) -> Option<Script> {
    Some(match word {
        "429" => Script::Throttled {
            times: 1,
            retry_after_secs: 1,
        },
        "500" => Script::Flaky { failures: 1 },
        "503" => Script::Outage,
        "unregistered" => Script::Unregistered { since_ms: None },
        _ => return None,
    })
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut shares = Vec::new();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (word, percent) = part
                .split_once(':')
                .ok_or_else(|| format!("{part:?} is not of the form WORD:PERCENT"))?;
            let script = script(word).ok_or_else(|| format!("{word:?} is not one of {WORDS}"))?;
            let percent: f64 = percent
                .trim_end_matches('%')
                .parse()
                .ok()
                .filter(|part| *part >= 0.001 && *part <= 100.0)
                .ok_or_else(|| format!("{percent:?} is not a percentage from 0.001 to 100"))?;
            let every = (100.0 / percent).round() as u64;
            shares.push(Share { script, every });
        }
        Ok(Self {
            text: text.to_owned(),
            shares,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Mix;

    #[test]
    fn percentages_are_read() {
        let mix: Mix = "503:1, unregistered:0.1%".parse().unwrap();
        let every: Vec<_> = mix.shares.iter().map(|share| share.every).collect();
        assert_eq!(every, [100, 1000]);
        assert!("".parse::<Mix>().unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (text, named) in [
            ("503", "WORD:PERCENT"),
            ("teapot:1", "teapot"),
            ("503:none", "none"),
            ("503:0", "percentage"),
            ("503:101", "percentage"),
        ] {
            let error = text.parse::<Mix>().unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
