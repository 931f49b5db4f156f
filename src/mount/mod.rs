//! The mount side wired on one screen, with its shutdown order.
