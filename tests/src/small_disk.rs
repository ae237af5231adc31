//! A disk that is really full: a small file system in the place of a data directory.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Result;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A disk of a few MiB in the place of a directory, with what that held.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// In the place of a directory that no daemon uses at present.
    pub fn over(path: &Path) -> Result<Self> {
        let kept: Vec<_> = fs::read_dir(path)?
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
            .map(|entry| Ok((entry.path(), fs::read(entry.path())?)))
            .collect::<Result<_>>()?;
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), Some(c"size=4m,mode=0700"))?;
        let disk = Self { path: path.to_owned() };
        for (file, content) in kept {
            fs::write(&file, content)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        }
        Ok(disk)
    }

    /// Leaves no space on it.
    pub fn fill(&self) -> Result<()> {
        let mut file = fs::File::create(self.path.join("filler"))?;
        while file.write_all(&[0; 4_096]).is_ok() {}
        Ok(())
    }

    /// Gives the space back.
    pub fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.path.join("filler"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}
