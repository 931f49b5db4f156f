//! What was typed, turned into what it means; bad values die here.
