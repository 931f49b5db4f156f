//! One file a command: what was typed, nothing more.
