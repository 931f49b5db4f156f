//! Ed25519 keys that identify a machine or a user, and the files that hold them.
//!
//! There is no fingerprint apart from the key. 32 bytes are 52 characters of base32, short enough to print
//! whole. So people compare the key itself.

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use aws_lc_rs::{
    rand::{SecureRandom as _, SystemRandom},
    signature::{Ed25519KeyPair, KeyPair as _},
};
use data_encoding::{BASE32_NOPAD, BASE64, HEXLOWER};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use thiserror::Error;

use crate::io::private::{self, NotPrivate};

/// Bytes of an Ed25519 public key.
pub const PUBLIC_KEY_BYTES: usize = 32;
/// Largest key file read. A key file has some 120 bytes.
const KEY_FILE_BYTES_MAX: u64 = 16 * 1024;

/// An Ed25519 public key, which identifies a host or a client. Shown as 52 characters of lower-case base32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; PUBLIC_KEY_BYTES]);

impl PublicKey {
    /// Returns the 32 bytes of the key.
    pub fn as_bytes(&self) -> &[u8; PUBLIC_KEY_BYTES] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = IdentityError;

    /// Reads the output of `Display`. Upper case is accepted.
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let bad = || IdentityError::BadPublicKey { text: text.chars().take(80).collect() };
        let bytes = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).map_err(|_| bad())?;
        bytes.try_into().map(Self).map_err(|_| bad())
    }
}

/// A key pair. The secret half leaves this type only into the TLS signer and the key file.
pub struct Identity {
    pkcs8: PrivatePkcs8KeyDer<'static>,
    public_key: PublicKey,
}

impl Identity {
    /// Makes a new key from random bytes of the system.
    pub fn generate() -> Result<Self, IdentityError> {
        let pkcs8 =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| IdentityError::NoRandomness)?;
        Self::from_pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec()))
            .map_err(|reason| IdentityError::BadKeyFile { path: PathBuf::from("(new key)"), reason })
    }

    /// Reads the key at `path`, or makes one there (file 0600, folder 0700) if there is none.
    ///
    /// Refuses a file that others may read. A key that leaked once does not identify anybody any more.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        match Self::load(path) {
            Err(IdentityError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            loaded => return loaded,
        }
        let identity = Self::generate()?;
        match identity.store_new(path) {
            // Another process was faster. Its key is the key of the machine.
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Self::load(path),
            Err(source) => Err(IdentityError::Write { path: path.to_owned(), source }),
            Ok(()) => Ok(identity),
        }
    }

    /// Reads the key at `path`: PKCS#8 as PEM or raw DER.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let read_error = |source| IdentityError::Read { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(read_error)?;
        let mode = file.metadata().map_err(read_error)?.mode();
        if mode & 0o077 != 0 {
            return Err(IdentityError::TooOpen { path: path.to_owned(), mode: mode & 0o777 });
        }
        let mut bytes = Vec::new();
        file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(read_error)?;
        let bad_file = |reason: String| IdentityError::BadKeyFile { path: path.to_owned(), reason };
        let pkcs8 = if bytes.starts_with(b"-----") {
            PrivatePkcs8KeyDer::from_pem_slice(&bytes).map_err(|error| bad_file(error.to_string()))?
        } else {
            PrivatePkcs8KeyDer::from(bytes)
        };
        Self::from_pkcs8(pkcs8).map_err(bad_file)
    }

    /// Returns the public half.
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// Returns the secret half, for the TLS signer.
    pub(super) fn pkcs8(&self) -> &PrivatePkcs8KeyDer<'static> {
        &self.pkcs8
    }

    fn from_pkcs8(pkcs8: PrivatePkcs8KeyDer<'static>) -> Result<Self, String> {
        // `openssl genpkey` writes version 1 without a public key. The strict reader wants version 2.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8.secret_pkcs8_der())
            .map_err(|rejected| format!("not an Ed25519 key in PKCS#8 ({rejected})"))?;
        let public_key =
            pair.public_key().as_ref().try_into().map_err(|_| "public key of odd length".to_owned())?;
        Ok(Self { pkcs8, public_key: PublicKey(public_key) })
    }

    /// Writes the key to a file that must not exist yet. The file appears whole or not at all.
    fn store_new(&self, path: &Path) -> io::Result<()> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        private::prepare(folder).map_err(|error| match error {
            NotPrivate::System { source, .. } => source,
            error => io::Error::other(error),
        })?;
        // The key is written to another name and linked. So a crash leaves no half key under the real name.
        let suffix = random_bytes::<8>().map_err(io::Error::other)?;
        let beside = folder.join(format!(".identity-{}.new", HEXLOWER.encode(&suffix)));
        let written = self.write_pem(&beside).and_then(|()| fs::hard_link(&beside, path));
        let removed = fs::remove_file(&beside);
        written.and(removed)?;
        fs::File::open(folder)?.sync_all()
    }

    fn write_pem(&self, path: &Path) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let body = BASE64.encode(self.pkcs8.secret_pkcs8_der());
        let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
        for line in body.as_bytes().chunks(64) {
            pem.extend(line.iter().map(|&byte| char::from(byte)));
            pem.push('\n');
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        file.write_all(pem.as_bytes())?;
        file.sync_all()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Identity").field("public_key", &self.public_key).finish_non_exhaustive()
    }
}

/// Returns random bytes of the system, for secrets and ids.
pub fn random_bytes<const COUNT: usize>() -> Result<[u8; COUNT], IdentityError> {
    let mut bytes = [0; COUNT];
    SystemRandom::new().fill(&mut bytes).map_err(|_| IdentityError::NoRandomness)?;
    Ok(bytes)
}

/// Failure to make, read or keep a key.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The system gave no random bytes.
    #[error("cannot make a key: the system gives no random bytes")]
    NoRandomness,
    /// The file could not be read.
    #[error("cannot read the identity {}: {source}", .path.display())]
    Read {
        /// The key file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The file could not be written.
    #[error("cannot write the identity {}: {source}", .path.display())]
    Write {
        /// The key file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// Others may read the secret key.
    #[error(
        "the identity {} can be read by others (mode {mode:03o}): run `chmod 600 {}`, or remove it to get a new one",
        .path.display(), .path.display()
    )]
    TooOpen {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not a key.
    #[error("the identity {} cannot be used: {reason}", .path.display())]
    BadKeyFile {
        /// The key file.
        path: PathBuf,
        /// Reason.
        reason: String,
    },
    /// Text is not a public key.
    #[error("`{text}` is not a public key: expected 52 characters of base32, as `wormhole key show` prints")]
    BadPublicKey {
        /// The text, cut.
        text: String,
    },
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A folder that only its owner may write to, for any umask of the process.
    fn private_folder() -> tempfile::TempDir {
        tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap()
    }

    #[test]
    fn public_key_text_round_trips_and_is_short() {
        let key = Identity::generate().unwrap().public_key();
        let text = key.to_string();
        assert_eq!(text.len(), 52);
        assert_eq!(text.parse::<PublicKey>().unwrap(), key);
        assert_eq!(text.to_uppercase().parse::<PublicKey>().unwrap(), key);
    }

    #[test]
    fn text_that_is_no_key_is_refused() {
        for text in ["", "abc", "0189", &"a".repeat(51), &"a".repeat(53), "héllo"] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
    }

    #[test]
    fn key_file_is_made_once_private_and_kept() {
        let folder = private_folder();
        let path = folder.path().join("state/identity.pem");
        let made = Identity::load_or_create(&path).unwrap();
        let read = Identity::load_or_create(&path).unwrap();
        assert_eq!(made.public_key(), read.public_key());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        let names: Vec<_> =
            fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["identity.pem"]);
    }

    #[test]
    fn key_file_open_to_others_is_refused_in_words() {
        let folder = private_folder();
        let path = folder.path().join("identity.pem");
        Identity::load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Identity::load_or_create(&path).unwrap_err();
        assert!(matches!(error, IdentityError::TooOpen { mode: 0o640, .. }));
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn raw_der_is_read_and_rubbish_is_not_overwritten() {
        let folder = private_folder();
        let path = folder.path().join("key");
        let identity = Identity::generate().unwrap();
        fs::write(&path, identity.pkcs8().secret_pkcs8_der()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Identity::load(&path).unwrap().public_key(), identity.public_key());

        fs::write(&path, b"not a key").unwrap();
        assert!(matches!(Identity::load_or_create(&path), Err(IdentityError::BadKeyFile { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"not a key");
    }

    #[test]
    fn debug_output_hides_the_secret() {
        let identity = Identity::generate().unwrap();
        let text = format!("{identity:?}");
        assert!(text.contains(&identity.public_key().to_string()));
        assert!(!text.contains("pkcs8"));
    }
}
