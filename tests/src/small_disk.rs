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
    fillers: Vec<PathBuf>,
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
        let disk = Self { path: path.to_owned(), fillers: Vec::new() };
        for (file, content) in kept {
            fs::write(&file, content)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        }
        Ok(disk)
    }

    /// Leaves no space on it, by a file of this name.
    pub fn fill(&mut self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        let mut file = fs::File::create(&path)?;
        self.fillers.push(path);
        while file.write_all(&[0; 4_096]).is_ok() {}
        Ok(())
    }

    /// Gives the space back.
    pub fn free(&mut self) -> Result<()> {
        for filler in self.fillers.drain(..) {
            fs::remove_file(filler)?;
        }
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}
