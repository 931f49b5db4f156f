//! Every metric's name, unit and meaning.
