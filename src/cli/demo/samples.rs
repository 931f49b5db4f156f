//! Files to show: a film, a few photographs, and a tree of small texts.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{CliError, Interrupted};

/// A film is one large file.
const FILM_BYTES: u64 = 64 << 20;
/// Photographs are several of a few megabytes.
const PHOTOS: usize = 8;
const PHOTO_BYTES: u64 = 3_000_017;
/// Sources are many small ones.
const FOLDERS: usize = 20;
const TEXTS_IN_FOLDER: usize = 10;

/// The file that is written last.
pub(super) const LAST: &str = "films/holiday.mkv";

/// Makes the files in `folder` and returns it. They are the same every time.
pub(super) fn make(folder: &Path, interrupted: &Interrupted) -> Result<PathBuf, CliError> {
    let make = || -> io::Result<()> {
        fs::create_dir_all(folder.join("films"))?;
        fs::create_dir_all(folder.join("photos"))?;
        for photo in 0..PHOTOS {
            noise(&folder.join(format!("photos/{photo:04}.jpg")), PHOTO_BYTES)?;
        }
        for number in 0..FOLDERS {
            let below = folder.join(format!("sources/part-{number:02}"));
            fs::create_dir_all(&below)?;
            for text in 0..TEXTS_IN_FOLDER {
                let line = format!("This is line {{}} of text {text} in part {number}.\n");
                let content: String =
                    (0..40 + 30 * text).map(|at| line.replace("{}", &at.to_string())).collect();
                fs::write(below.join(format!("text-{text}.txt")), content)?;
            }
        }
        noise(&folder.join(LAST), FILM_BYTES)
    };
    make().map_err(|error| CliError::system(format!("sample files in {}: {error}", folder.display())))?;
    interrupted.check()?;
    Ok(folder.to_owned())
}

/// Bytes that no compression helps with, different for each name.
fn noise(path: &Path, bytes: u64) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut source = blake3::Hasher::new().update(name.as_bytes()).finalize_xof();
    let mut file = io::BufWriter::new(fs::File::create(path)?);
    let mut part = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(part.len() as u64) as usize;
        source.fill(&mut part[..now]);
        file.write_all(&part[..now])?;
        left -= now as u64;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_its_length_and_depends_on_the_name_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("a"), directory.path().join("b"));
        noise(&one, 1_500_000).unwrap();
        noise(&other, 1_500_000).unwrap();
        let first = fs::read(&one).unwrap();
        assert_eq!(first.len(), 1_500_000);
        assert_ne!(first, fs::read(&other).unwrap());
        noise(&one, 1_500_000).unwrap();
        assert_eq!(first, fs::read(&one).unwrap());
    }
}
