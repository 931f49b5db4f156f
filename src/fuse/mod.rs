//! Kernel glue that decides nothing.
