//! What the tests of several files here need.

pub(super) use crate::proto::testing::attributes;
