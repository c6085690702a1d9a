//! HTTP: one file per endpoint.
