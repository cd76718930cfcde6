//! File systems of one's own, in memory: what is mounted here is gone with the value that stands for
//! it, whatever happens.

use crate::process::{between_starts, tool};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Something mounted.
#[derive(Debug)]
pub(crate) struct Mounted {
    dir: PathBuf,
    kind: &'static str,
    ended: bool,
}

impl Mounted {
    fn new(source: &str, dir: &Path, kind: &'static str, data: &str) -> Result<Self, String> {
        let data = CString::new(data).unwrap();
        mount(source, dir, kind, MountFlags::empty(), Some(&*data))
            .map_err(|error| format!("mounting {kind} with {data:?}: {error}"))?;
        Ok(Self { dir: dir.to_owned(), kind, ended: false })
    }

    /// A file system in memory that holds no more than so many KiB.
    pub(crate) fn in_memory(dir: &Path, kib: u64) -> Result<Self, String> {
        Self::new("atlas", dir, "tmpfs", &format!("size={kib}k,mode=0755"))
    }

    /// Gives it another size, where it is in memory, or another mode.
    pub(crate) fn change(&self, flags: MountFlags, data: &str) -> Result<(), String> {
        mount_remount(&self.dir, flags, CString::new(data).unwrap())
            .map_err(|error| format!("mounting {} anew with {flags:?} {data}: {error}", self.kind))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Unmounts it, and says if that cannot be done as somebody uses it.
    pub(crate) fn end(mut self) -> Result<(), String> {
        let ended = between_starts(|| unmount(&self.dir, UnmountFlags::empty()));
        ended.map_err(|error| format!("unmounting: {error}"))?;
        self.ended = true;
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whoever still uses it keeps it; its name and what it stands on are free.
        if !self.ended {
            let _ = unmount(&self.dir, UnmountFlags::DETACH);
        }
    }
}

/// A loop device.
#[derive(Debug)]
struct Loop(String);

impl Loop {
    /// One with sectors as long as the pages of memory.
    fn new(image: &Path) -> Result<Self, String> {
        let device =
            tool("losetup", &["--find", "--show", "--sector-size", "4096", image.to_str().unwrap()])?;
        Ok(Self(device.trim().to_owned()))
    }

    /// Has every page written by a request of its own. Of a longer one, for the second half of which
    /// there is no memory, the device says that all of it was written.
    fn one_page_at_a_time(&self) -> Result<(), String> {
        let setting = format!("/sys/block/{}/queue/max_sectors_kb", self.0.trim_start_matches("/dev/"));
        std::fs::write(&setting, "4").map_err(|error| format!("writing {setting}: {error}"))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = tool("losetup", &["--detach", &self.0]);
    }
}

/// The file systems that disks are formatted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Ext4,
    Xfs,
}

impl Format {
    pub(crate) const ALL: [Self; 2] = [Self::Ext4, Self::Xfs];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    fn make(self, device: &str) -> Result<String, String> {
        match self {
            Self::Ext4 => {
                let now = "lazy_itable_init=0,lazy_journal_init=0";
                tool("mkfs.ext4", &["-q", "-F", "-m", "0", "-J", "size=4", "-E", now, device])
            }
            Self::Xfs => tool("mkfs.xfs", &["-q", "-f", device]),
        }
    }

    /// The smallest disk that it can be made on, in KiB.
    fn disk_kib(self) -> u64 {
        match self {
            Self::Ext4 => 64 << 10,
            Self::Xfs => 320 << 10,
        }
    }
}

/// A disk whose blocks are in memory, formatted. The fields go in this order.
#[derive(Debug)]
pub(crate) struct Disk {
    device: Loop,
    memory: Mounted,
    dir: PathBuf,
    format: Format,
    _place: TempDir,
}

impl Disk {
    pub(crate) fn new(format: Format) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root can mount".to_owned());
        }
        let place = tempfile::Builder::new().prefix("runwal-atlas-").tempdir().unwrap();
        let (memory, dir) = (place.path().join("memory"), place.path().join("disk"));
        for dir in [place.path(), &memory, &dir] {
            std::fs::create_dir_all(dir).unwrap();
        }
        let memory = Mounted::in_memory(&memory, 2 * format.disk_kib())?;
        let image = memory.dir().join("image");
        std::fs::File::create(&image).unwrap().set_len(format.disk_kib() << 10).unwrap();
        let device = Loop::new(&image)?;
        format.make(&device.0)?;
        Ok(Self { device, memory, dir, format, _place: place })
    }

    /// Mounts it; what a cut left is settled by that.
    pub(crate) fn mount(&self, data: &str) -> Result<Mounted, String> {
        Mounted::new(&self.device.0, &self.dir, self.format.name(), data)
    }

    /// Leaves so many KiB of memory for blocks that nothing was written to yet: then writes fail.
    pub(crate) fn thin_out(&self, kib: u64) -> Result<(), String> {
        self.device.one_page_at_a_time()?;
        let stat = rustix::fs::statvfs(self.memory.dir()).unwrap();
        let taken = (stat.f_blocks - stat.f_bfree) * stat.f_frsize / 1024;
        self.memory.change(MountFlags::empty(), &format!("size={}k", taken + kib))
    }

    /// Gives it memory for all of its blocks again.
    pub(crate) fn fill_up(&self) -> Result<(), String> {
        self.memory.change(MountFlags::empty(), &format!("size={}k", 2 * self.format.disk_kib()))
    }
}
