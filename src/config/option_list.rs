//! Splits `-o` lists into options.
//!
//! Pure. Names are compared with `_` for `-`, so `allow-other` is `allow_other`. A comma between double
//! quotes does not split, as in mount(8). The quotes are removed.

use super::OptionError;

/// One option of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawOption {
    /// Name as typed, for messages.
    pub(super) typed: String,
    /// Name for comparison, with `_` for `-`.
    pub(super) name: String,
    /// Value after the first `=`.
    pub(super) value: Option<String>,
}

/// Splits `a,b=c` into its options and skips empty ones.
pub(super) fn split(list: &str) -> Result<Vec<RawOption>, OptionError> {
    let mut words = Vec::new();
    let mut current = String::new();
    let mut quoted = false;
    for character in list.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => words.extend(word(&std::mem::take(&mut current))),
            _ => current.push(character),
        }
    }
    if quoted {
        return Err(OptionError::OpenQuote(list.to_owned()));
    }
    words.extend(word(&current));
    Ok(words)
}

fn word(text: &str) -> Option<RawOption> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name.trim(), Some(value.to_owned())),
        None => (text.trim(), None),
    };
    (!text.trim().is_empty()).then(|| RawOption {
        typed: name.to_owned(),
        name: name.replace('-', "_"),
        value,
    })
}

impl RawOption {
    /// Checks that the option has no value.
    pub(super) fn flag(&self) -> Result<(), OptionError> {
        match &self.value {
            None => Ok(()),
            Some(value) => {
                Err(OptionError::UnexpectedValue { name: self.typed.clone(), value: value.clone() })
            }
        }
    }

    /// Reads the required value with `parse`. `allowed` describes the allowed values.
    pub(super) fn value<T>(
        &self,
        allowed: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, OptionError> {
        match self.value.as_deref() {
            None | Some("") => Err(OptionError::MissingValue { name: self.typed.clone(), allowed }),
            Some(value) => parse(value).ok_or_else(|| OptionError::BadValue {
                name: self.typed.clone(),
                value: value.to_owned(),
                allowed,
            }),
        }
    }

    /// Returns the error for an option that is planned for later.
    pub(super) fn not_available(&self, instead: &'static str) -> OptionError {
        let option = match &self.value {
            None => self.typed.clone(),
            Some(value) => format!("{}={value}", self.typed),
        };
        OptionError::NotAvailable { option, instead }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &str) -> Vec<(String, Option<String>)> {
        split(list).unwrap().into_iter().map(|word| (word.name, word.value)).collect()
    }

    #[test]
    fn lists_are_cut_at_commas() {
        let expected = vec![
            ("ro".to_owned(), None),
            ("cache_size".to_owned(), Some("50G".to_owned())),
            ("comment".to_owned(), Some("a=b".to_owned())),
        ];
        assert_eq!(pairs("ro,,cache-size=50G, ,comment=a=b,"), expected);
    }

    #[test]
    fn quotes_keep_commas() {
        assert_eq!(pairs(r#"cache_dir="/a,b",ro"#)[0].1.as_deref(), Some("/a,b"));
        assert!(matches!(split(r#"ro,x="y"#), Err(OptionError::OpenQuote(_))));
    }

    #[test]
    fn only_names_lose_their_hyphens() {
        assert_eq!(pairs("cache-dir=/a-b"), [("cache_dir".to_owned(), Some("/a-b".to_owned()))]);
    }
}
