//! When something that failed is worth another pass, and how long to wait before.
//!
//! The rules are those of GitHub's documentation: `retry-after` first, then the end of the hour's
//! allowance, and at least a minute, each time twice as long, for a secondary limit that names no time. A
//! plain 403 is a token without the right, which no patience mends.

use std::time::Duration;

/// Failures in a row before nobody tries again.
pub const MOST: u32 = 6;
/// The longest that all waiting together may take.
pub const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// The first wait for a limit that names no time.
const MINUTE: u64 = 60;

/// What is known of a failure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failure {
    /// The answer's status; nothing where there was no answer.
    pub status: Option<u16>,
    /// In the API's words.
    pub message: String,
    /// Seconds, from `retry-after`.
    pub retry_after: Option<u64>,
    /// Requests that are left, from `x-ratelimit-remaining`.
    pub remaining: Option<u64>,
    /// When there are more, in seconds since the epoch, from `x-ratelimit-reset`.
    pub reset: Option<u64>,
    /// Whether it is the way there that failed, rather than our request.
    pub on_the_way: bool,
}

impl Failure {
    /// How long to wait before the next pass, if there is any sense in one. `failures` counts this one
    /// and those before it in a row, `now` the seconds since the epoch.
    pub fn wait(&self, failures: u32, now: u64) -> Option<Duration> {
        let doubled = |first: u64| first << failures.saturating_sub(1).min(MOST);
        let seconds = match self.status {
            None if self.on_the_way => doubled(1),
            Some(403 | 429) => match (self.retry_after, self.remaining, self.reset) {
                (Some(seconds), ..) => seconds.max(1),
                (None, Some(0), Some(reset)) => reset.saturating_sub(now) + 1,
                _ if self.status == Some(429) || self.is_secondary() => doubled(MINUTE),
                _ => return None,
            },
            Some(408 | 500..=599) => self.retry_after.unwrap_or(0).max(doubled(1)),
            _ => return None,
        };
        Some(Duration::from_secs(seconds))
    }

    /// Whether a limit was met, and not a missing right.
    pub fn is_limit(&self) -> bool {
        matches!(self.status, Some(403 | 429)) && self.wait(1, 0).is_some()
    }

    fn is_secondary(&self) -> bool {
        let message = self.message.to_lowercase();
        message.contains("secondary rate limit") || message.contains("abuse detection")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(failure: &Failure, failures: u32) -> Option<u64> {
        failure.wait(failures, 1000).map(|wait| wait.as_secs())
    }

    fn answered(status: u16) -> Failure {
        Failure { status: Some(status), ..Failure::default() }
    }

    #[test]
    fn who_is_told_when_to_come_again_waits_until_then() {
        let limited =
            Failure { retry_after: Some(7), remaining: Some(0), reset: Some(5000), ..answered(403) };
        assert_eq!(seconds(&limited, 3), Some(7));
        assert_eq!(seconds(&Failure { retry_after: None, ..limited.clone() }, 3), Some(4001));
        assert!(limited.is_limit());
    }

    #[test]
    fn a_limit_without_a_time_is_worth_minutes() {
        let message = "You have exceeded a secondary rate limit.".to_owned();
        let secondary = Failure { message, remaining: Some(4000), ..answered(403) };
        assert_eq!([1, 2, 3].map(|n| seconds(&secondary, n)), [Some(60), Some(120), Some(240)]);
        assert_eq!(seconds(&answered(429), 1), Some(60));
    }

    #[test]
    fn a_server_that_stumbles_gets_longer_and_longer() {
        assert_eq!([1, 2, 3].map(|n| seconds(&answered(502), n)), [Some(1), Some(2), Some(4)]);
        let cut = Failure { on_the_way: true, ..Failure::default() };
        assert_eq!([1, 5].map(|n| seconds(&cut, n)), [Some(1), Some(16)]);
    }

    #[test]
    fn what_is_refused_is_not_asked_again() {
        for status in [400, 401, 403, 404, 410, 422] {
            assert_eq!(seconds(&answered(status), 1), None, "{status}");
        }
        assert_eq!(seconds(&Failure::default(), 1), None);
        assert!(!answered(403).is_limit());
    }
}
