//! The FUSE device: checks if this user may open it, and gives a remedy if not.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::{major, minor};

/// Path of the device.
const PATH: &str = "/dev/fuse";

/// Major and minor number of the device.
const NUMBERS: (u64, u64) = (10, 229);

/// Reason why mounts cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The device or its kernel driver is missing.
    #[error("FUSE is missing ({PATH}: {0})")]
    Missing(io::Error),
    /// Another file has this name.
    #[error("{PATH} is not the FUSE device")]
    Foreign,
    /// This user may not open it.
    #[error(
        "this user may not open {PATH}, which belongs to user {owner} and group {group} with mode {mode:04o}"
    )]
    NotAllowed {
        /// Owner of the device.
        owner: u32,
        /// Group of the device.
        group: u32,
        /// Permission bits of the device.
        mode: u32,
    },
}

impl DeviceError {
    /// Returns a remedy.
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Missing(_) | Self::Foreign => {
                "load it with `modprobe fuse`, or give a container `--device /dev/fuse --cap-add SYS_ADMIN`"
            }
            Self::NotAllowed { .. } => {
                "as root, `chmod 666 /dev/fuse`, and for good a udev rule with KERNEL==\"fuse\", MODE=\"0666\"; \
                 or join its group, if that may read and write it"
            }
        }
    }
}

/// Opens the device once, as every mount must.
pub fn check_device() -> Result<(), DeviceError> {
    let file = File::options().read(true).write(true).open(PATH).map_err(refused)?;
    let found = file.metadata().map_err(DeviceError::Missing)?;
    if (major(found.rdev()), minor(found.rdev())) == NUMBERS { Ok(()) } else { Err(DeviceError::Foreign) }
}

fn refused(error: io::Error) -> DeviceError {
    match std::fs::metadata(PATH) {
        // EPERM has another cause: the container was not given the device.
        Ok(found) if error.raw_os_error() == Some(libc::EACCES) => {
            DeviceError::NotAllowed { owner: found.uid(), group: found.gid(), mode: found.mode() & 0o7777 }
        }
        _ => DeviceError::Missing(error),
    }
}
