//! Which signed requests of devices were used, by every process of the deployment.

use super::Store;
use super::db::{Arg, Error, Statement};
use crate::clock::Millis;
use crate::crypto::REQUEST_TOLERANCE_S;
use crate::id::DeviceId;

static USE: Statement = Statement::new(
    "INSERT INTO device_requests (device_id, jti, forget_at) VALUES ($1, $2, $3) ON CONFLICT (device_id, jti) DO NOTHING RETURNING jti",
);
pub(super) static FORGET: Statement = Statement::new(
    "DELETE FROM device_requests WHERE (device_id, jti) IN
       (SELECT device_id, jti FROM device_requests WHERE forget_at < $1 ORDER BY forget_at LIMIT $2)",
);
/// How many are forgotten in one look: more than any deployment writes in between.
pub(super) const FORGOTTEN: i64 = 10_000;

/// How long a request must be remembered: it may be dated ahead by the tolerance, is good until the tolerance after that, and both clocks count
/// whole seconds.
pub const REQUEST_MEMORY: Millis = (2 * REQUEST_TOLERANCE_S + 1) * 1000;
/// How far the clocks of our own processes may be apart.
pub(super) const SKEW: Millis = 60_000;

impl Store {
    /// Uses a signed request up. `false`: some process has used it before.
    pub async fn use_request(
        &self,
        device: &DeviceId,
        jti: &str,
        now: Millis,
    ) -> Result<bool, Error> {
        let args = [
            Arg::Text(device.as_str()),
            Arg::Text(jti),
            Arg::Int(now + REQUEST_MEMORY),
        ];
        Ok(!self.db.write(&USE, &args).await?.is_empty())
    }
}
