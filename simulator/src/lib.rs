//! APNs and FCM on the wire, and virtual phones.
