//! Relay, fan-out, providers, sweeper and the wait-on-push activity.
