//! Let a new device in: a QR code, and the wait until a phone has used it.

use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::Output;
use clap::Args;
use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2};
use serde_json::{Value, json};
use std::time::Duration;

/// How often the code is looked at while somebody waits.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct Enrol {
    /// Your own identifier of the user, or `usr_…`.
    user: String,
    /// For which app.
    #[arg(long, default_value = crate::dev::RELYING_PARTY)]
    relying_party: String,
    /// How long the code counts.
    #[arg(long, default_value = "600s")]
    expires_in: String,
    /// Print and end.
    #[arg(long)]
    no_wait: bool,
}

/// Two modules in one character. The quiet zone and the light modules are what a terminal draws, so that it is dark on light as scanners
/// expect, also in a dark terminal.
pub(crate) fn drawn(text: &str) -> Result<String, Failure> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).map_err(|error| {
        Failure::new(Exit::Failed, format!("the link fits no QR code: {error}"))
    })?;
    let mut drawn = code.render::<Dense1x2>();
    drawn
        .dark_color(Dense1x2::Light)
        .light_color(Dense1x2::Dark);
    Ok(drawn.build())
}

impl Enrol {
    pub(super) async fn run(&self, client: &Client, output: &Output) -> Result<Exit, Failure> {
        let path = super::device::path_of(client, &self.user).await?;
        let path = format!("{path}/enrolment-codes");
        let body = json!({"relying_party": self.relying_party, "expires_in": self.expires_in});
        let made = client.ask("POST", &path, Some(&body)).await?;
        let text =
            |document: &Value, name: &str| document[name].as_str().unwrap_or_default().to_owned();
        let link = text(&made, "link");
        if output.json {
            output.data(&made, "");
        } else {
            output.line(&drawn(&link)?);
            output.line(&link);
            output.note("Scan it with the app. Whoever does so first gets in.");
        }
        if self.no_wait {
            return Ok(Exit::Done);
        }
        let path = format!("{path}/{}", text(&made, "id"));
        let spinner = output.spinner("waiting for the phone");
        let ended = loop {
            match client.ask("GET", &path, None).await {
                Ok(code) if code["state"] == "open" => {}
                Ok(code) => break code,
                // The code goes on, whether or not the server can be asked just now.
                Err(failure) if failure.exit == Exit::Unreachable => {}
                Err(failure) => return Err(failure),
            }
            tokio::time::sleep(LOOK).await;
        };
        spinner.finish_and_clear();
        let state = text(&ended, "state");
        let (exit, words) = match state.as_str() {
            "used" => (Exit::Done, format!("enrolled {}", text(&ended, "device"))),
            "expired" => (Exit::Expired, "expired: no device used it".to_owned()),
            _ => (Exit::Cancelled, state),
        };
        output.data(&ended, &words);
        Ok(exit)
    }
}

#[cfg(test)]
mod tests {
    use super::drawn;

    #[test]
    fn a_link_becomes_a_square_of_half_blocks() {
        let link = format!(
            "countersign://enrol?url=http%3A%2F%2Flocalhost%3A7070&store=sto_{}&code={}&kid={}",
            "0".repeat(26),
            "c".repeat(27),
            "k".repeat(43)
        );
        let drawn = drawn(&link).unwrap();
        let lines: Vec<_> = drawn.lines().collect();
        let wide = lines[0].chars().count();
        assert!(lines.iter().all(|line| line.chars().count() == wide));
        assert!((lines.len() * 2).abs_diff(wide) <= 1, "square");
        assert!(drawn.chars().all(|c| "█▀▄ \n".contains(c)));
        // The quiet zone is drawn, since a terminal is dark.
        assert!(lines[0].chars().all(|c| c == '█'));
        assert!(wide < 80, "{wide} fits a terminal");
    }
}
