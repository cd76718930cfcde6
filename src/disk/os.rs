//! The operating system's files: the only user of `rustix::fs` for the data directory.
//!
//! Every name is resolved beneath a directory that is held open, without following symbolic links
//! (`openat2`, or a walk component by component where the kernel lacks it). Files are made with
//! mode 0600 and directories with 0700 whatever the umask.

use super::{Disk, File, Kind, Open, Session, Stat};
use crate::error::{Error, Result};
use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const DIR_MODE: Mode = Mode::from_raw_mode(0o700);
/// How many parts one call takes (`IOV_MAX`).
const MAX_PARTS: usize = 1024;

/// What a look at somebody else's file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// What it is.
    pub(crate) kind: Kind,
    /// Bytes.
    pub(crate) len: u64,
    /// Whether it may be read; always so where it is no regular file.
    pub(crate) readable: bool,
}

/// A data directory of the operating system.
#[derive(Debug)]
pub struct OsDisk {
    root: OwnedFd,
    path: PathBuf,
}

impl OsDisk {
    /// Opens an existing directory.
    pub fn open(path: &Path) -> Result<Self> {
        let root =
            retry(|| fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()))
                .map_err(|e| Error::io(format!("opening the data directory {}", path.display()), e.into()))?;
        Ok(Self { root, path: path.to_owned() })
    }

    /// Opens a directory, made with mode 0700 where it does not exist; its parent must. What was
    /// made is durable on return.
    pub fn create(path: &Path) -> Result<Self> {
        match fs::mkdir(path, DIR_MODE) {
            Ok(()) => {
                // The umask may have taken bits away that the owner needs.
                fs::chmod(path, DIR_MODE)
                    .map_err(|e| Error::io(format!("setting the mode of {}", path.display()), e.into()))?;
                sync_parent(path)?;
            }
            // Whoever made it may have died before its name was durable.
            Err(Errno::EXIST) if !path.join("journal").exists() => sync_parent(path)?,
            Err(Errno::EXIST) => {}
            Err(e) => {
                return Err(Error::io(format!("making the data directory {}", path.display()), e.into()));
            }
        }
        Self::open(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies a regular file from anywhere to a new name here, together with the time of its last
    /// change; `false` where there is none. What was copied is not durable.
    pub(crate) fn copy_in(&self, from: &Path, name: &str) -> Result<bool> {
        let error = |e: Errno| Error::io(format!("copying {}", from.display()), e.into());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let source = match retry(|| fs::open(from, flags, Mode::empty())) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(false),
            Err(e) => return Err(error(e)),
        };
        let stat = fs::fstat(&source).map_err(error)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(error(Errno::INVAL));
        }
        let (fd, _) = self
            .open_or_make(name, Open::CreateNew, OFlags::RDWR | OFlags::NONBLOCK)
            .map_err(|e| self.error("making", name, e))?;
        let copy = OsFile { fd, name: self.path.join(name), locked: AtomicBool::new(false) };
        let (mut buffer, mut done) = (vec![0; 1 << 20], 0);
        loop {
            let read = retry(|| rustix::io::read(&source, &mut buffer)).map_err(error)?;
            if read == 0 {
                break;
            }
            copy.write_at(&buffer[..read], done)?;
            done += read as u64;
        }
        let ns = stat_of(&stat).modified_ns;
        let time =
            fs::Timespec { tv_sec: ns.div_euclid(1_000_000_000), tv_nsec: ns.rem_euclid(1_000_000_000) };
        let times = fs::Timestamps { last_access: time, last_modification: time };
        fs::futimens(&copy.fd, &times).map_err(|e| self.error("setting the time of", name, e))?;
        Ok(true)
    }

    /// Looks at a name of any bytes without following or opening it, in a directory that may be
    /// anybody's; `None` where nothing is. Directories on the way there are followed.
    pub(crate) fn look(&self, name: &[u8]) -> Option<Look> {
        let stat = stat_of(&fs::statat(&self.root, name, AtFlags::SYMLINK_NOFOLLOW).ok()?);
        let readable = stat.kind != Kind::File
            || fs::accessat(&self.root, name, fs::Access::READ_OK, AtFlags::empty()).is_ok();
        Some(Look { kind: stat.kind, len: stat.len, readable })
    }

    fn error(&self, doing: &str, name: &str, errno: Errno) -> Error {
        Error::io(format!("{doing} {}", self.path.join(name).display()), errno.into())
    }

    fn resolve(&self, name: &str, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // The kernel would resolve these beneath the root; the contract has no such names.
        if name != "." && name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(Errno::INVAL);
        }
        let mut flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if !flags.contains(OFlags::PATH) {
            flags |= OFlags::NOCTTY;
        }
        match retry(|| fs::openat2(&self.root, name, flags, mode, beneath)) {
            Err(Errno::NOSYS | Errno::PERM) => self.walk(name, flags, mode),
            other => other,
        }
    }

    /// The same without `openat2`: one component after the other, none of them followed.
    fn walk(&self, name: &str, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let mut at: Option<OwnedFd> = None;
        let mut parts = name.split('/').peekable();
        while let Some(part) = parts.next() {
            let here = at.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            let (how, mode) = if parts.peek().is_some() {
                (OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            } else {
                (flags, mode)
            };
            let next = retry(|| fs::openat(here, part, how, mode))?;
            at = Some(next);
        }
        at.ok_or(Errno::INVAL)
    }

    /// Opens as asked; answers whether the file was made.
    fn open_or_make(&self, name: &str, how: Open, flags: OFlags) -> rustix::io::Result<(OwnedFd, bool)> {
        if how != Open::CreateNew {
            match self.resolve(name, flags, Mode::empty()) {
                Err(Errno::NOENT) if how == Open::WriteOrCreate => {}
                other => return other.map(|fd| (fd, false)),
            }
        }
        match self.resolve(name, flags | OFlags::CREATE | OFlags::EXCL, FILE_MODE) {
            // Somebody else has made it meanwhile.
            Err(Errno::EXIST) if how == Open::WriteOrCreate => {
                self.resolve(name, flags, Mode::empty()).map(|fd| (fd, false))
            }
            other => other.map(|fd| (fd, true)),
        }
    }

    /// The directory a name stands in, held open, and the last component.
    fn parent<'n>(&self, name: &'n str) -> rustix::io::Result<(OwnedFd, &'n str)> {
        let (dir, last) = name.rsplit_once('/').unwrap_or((".", name));
        if last.is_empty() || last == "." || last == ".." {
            return Err(Errno::INVAL);
        }
        Ok((self.resolve(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?, last))
    }
}

impl Disk for OsDisk {
    fn open(&self, name: &str, how: Open) -> Result<Arc<dyn File>> {
        let flags = match how {
            Open::Read => OFlags::RDONLY | OFlags::NONBLOCK,
            Open::Write => OFlags::RDWR | OFlags::NONBLOCK,
            Open::WriteOrCreate | Open::CreateNew => OFlags::RDWR | OFlags::NONBLOCK,
            Open::Directory => OFlags::RDONLY | OFlags::DIRECTORY,
        };
        let (fd, made) = self.open_or_make(name, how, flags).map_err(|e| self.error("opening", name, e))?;
        let file = OsFile { fd, name: self.path.join(name), locked: AtomicBool::new(false) };
        if how != Open::Directory {
            let kind = file.stat()?.kind;
            if kind != Kind::File {
                return Err(Error::new(
                    crate::error::ErrorKind::Corrupt,
                    format!("{} is {}, not a regular file", file.name.display(), kind.describe()),
                ));
            }
        }
        if made {
            // The umask may have taken bits away that the owner needs.
            fs::fchmod(&file.fd, FILE_MODE).map_err(|e| self.error("setting the mode of", name, e))?;
        }
        Ok(Arc::new(file))
    }

    fn create_dir(&self, name: &str) -> Result<bool> {
        let make = || {
            let (dir, last) = self.parent(name)?;
            match fs::mkdirat(&dir, last, DIR_MODE) {
                Ok(()) => fs::chmodat(&dir, last, DIR_MODE, AtFlags::empty()).map(|()| true),
                Err(Errno::EXIST) => Ok(false),
                Err(e) => Err(e),
            }
        };
        make().map_err(|e| self.error("making the directory", name, e))
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> Result<bool> {
        let go = || {
            let (from_dir, from_last) = self.parent(from)?;
            let (to_dir, to_last) = self.parent(to)?;
            if replace {
                return fs::renameat(&from_dir, from_last, &to_dir, to_last).map(|()| true);
            }
            match fs::renameat_with(&from_dir, from_last, &to_dir, to_last, RenameFlags::NOREPLACE) {
                Ok(()) => Ok(true),
                Err(Errno::EXIST) => Ok(false),
                Err(e) => Err(e),
            }
        };
        go().map_err(|e| self.error(&format!("renaming {from} to"), to, e))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let go = || {
            let (dir, last) = self.parent(name)?;
            fs::unlinkat(&dir, last, AtFlags::empty())
        };
        go().map_err(|e| self.error("removing", name, e))
    }

    fn list(&self, name: &str, visit: &mut dyn FnMut(&str, Kind)) -> Result<()> {
        let error = |e| self.error("listing", name, e);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = self.resolve(name, flags, Mode::empty()).map_err(error)?;
        let mut dir = fs::Dir::new(fd).map_err(error)?;
        while let Some(entry) = dir.read() {
            let entry = entry.map_err(error)?;
            let entry_name = entry.file_name().to_string_lossy();
            if entry_name == "." || entry_name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    self.stat(&format!("{name}/{entry_name}"))?.map_or(Kind::Special, |s| s.kind)
                }
                known => kind_of(known),
            };
            visit(&entry_name, kind);
        }
        Ok(())
    }

    fn stat(&self, name: &str) -> Result<Option<Stat>> {
        let look = || {
            if name == "." {
                return fs::fstat(&self.root);
            }
            let (dir, last) = self.parent(name)?;
            fs::statat(&dir, last, AtFlags::SYMLINK_NOFOLLOW)
        };
        match look() {
            Ok(stat) => Ok(Some(stat_of(&stat))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(self.error("looking at", name, e)),
        }
    }

    fn is_named(&self, name: &str, device: u64, inode: u64) -> Result<bool> {
        match fs::statat(&self.root, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let stat = stat_of(&stat);
                Ok((stat.device, stat.inode) == (device, inode))
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(e) => Err(self.error("looking at", name, e)),
        }
    }

    fn sync_dir(&self, name: &str) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        self.resolve(name, flags, Mode::empty())
            .and_then(fs::fsync)
            .map_err(|e| self.error("syncing the directory", name, e))
    }

    fn sync_all(&self) -> Result<()> {
        fs::syncfs(&self.root).map_err(|e| self.error("syncing the file system of", "", e))
    }

    fn path(&self) -> Option<PathBuf> {
        std::path::absolute(&self.path).ok()
    }

    fn session(&self) -> Result<Session> {
        let error = |e| self.error("asking for the mount of", "", e);
        // Ordinary mount ids are given away again after an unmount; Linux 6.8 has lasting ones
        // (STATX_MNT_ID_UNIQUE), which older kernels ignore the wish for.
        let lasting = fs::StatxFlags::from_bits_retain(0x4000);
        let wanted = fs::StatxFlags::BASIC_STATS | fs::StatxFlags::MNT_ID | lasting;
        let x = fs::statx(&self.root, "", AtFlags::EMPTY_PATH, wanted).map_err(error)?;
        let device = (u64::from(x.stx_dev_major) << 32) | u64::from(x.stx_dev_minor);
        Ok(Session { boot: boot_id()?, device, mount: x.stx_mnt_id })
    }

    fn unreliable(&self) -> Result<Option<&'static str>> {
        let stat = fs::fstatfs(&self.root).map_err(|e| self.error("asking for the file system of", "", e))?;
        // The magic numbers of linux/magic.h; the field's width differs between architectures.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a 32-bit magic number")]
        let magic = stat.f_type as u32;
        Ok(match magic {
            0x6969 => Some("NFS"),
            0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
            0x6573_5546 => Some("FUSE"),
            0x0102_1997 => Some("9P"),
            0x00c3_6400 => Some("Ceph"),
            0x5346_414f => Some("AFS"),
            _ => None,
        })
    }
}

/// An open file of the operating system.
#[derive(Debug)]
struct OsFile {
    fd: OwnedFd,
    name: PathBuf,
    locked: AtomicBool,
}

impl OsFile {
    fn error(&self, doing: &str, errno: Errno) -> Error {
        Error::io(format!("{doing} {}", self.name.display()), errno.into())
    }
}

impl File for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let n = retry(|| rustix::io::pread(&self.fd, &mut buf[done..], offset + done as u64))
                .map_err(|e| self.error("reading", e))?;
            if n == 0 {
                break;
            }
            done += n;
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        write_whole(bytes, offset, |rest, at| rustix::io::pwrite(&self.fd, rest, at))
            .map_err(|e| self.error("writing", e))
    }

    fn write_parts_at(&self, parts: &[&[u8]], offset: u64) -> Result<()> {
        let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        write_all_parts(&mut slices, offset, |rest, at| rustix::io::pwritev(&self.fd, rest, at))
            .map_err(|e| self.error("writing", e))
    }

    fn sync(&self) -> Result<()> {
        // Not retried when interrupted: whether it took effect would not be known.
        fs::fdatasync(&self.fd).map_err(|e| self.error("syncing", e))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        retry(|| fs::ftruncate(&self.fd, len)).map_err(|e| self.error("setting the length of", e))
    }

    fn stat(&self) -> Result<Stat> {
        fs::fstat(&self.fd).map(|s| stat_of(&s)).map_err(|e| self.error("looking at", e))
    }

    fn try_lock(&self) -> Result<bool> {
        match retry(|| fs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => {
                self.locked.store(true, Ordering::Relaxed);
                Ok(true)
            }
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(self.error("locking", e)),
        }
    }

    fn unlock(&self) -> Result<()> {
        self.locked.store(false, Ordering::Relaxed);
        retry(|| fs::flock(&self.fd, FlockOperation::Unlock)).map_err(|e| self.error("unlocking", e))
    }

    fn begin_writing_back(&self, offset: u64, len: u64) {
        // What is dirty cannot be dropped: the kernel begins to write it, and does not wait for that.
        let _ = fs::fadvise(&self.fd, offset, std::num::NonZeroU64::new(len), fs::Advice::DontNeed);
    }

    fn drop_cache(&self) -> Result<()> {
        fs::fadvise(&self.fd, 0, None, fs::Advice::DontNeed).map_err(|e| self.error("advising on", e))
    }
}

impl Drop for OsFile {
    /// Closing alone would leave the lock with the descriptors that a process has which another
    /// thread is starting at this moment, until that is another program.
    fn drop(&mut self) {
        if self.locked.load(Ordering::Relaxed) {
            let _ = retry(|| fs::flock(&self.fd, FlockOperation::Unlock));
        }
    }
}

/// Makes the name of a directory durable.
fn sync_parent(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    retry(|| fs::open(parent, flags, Mode::empty()))
        .and_then(fs::fsync)
        .map_err(|e| Error::io(format!("syncing {}", parent.display()), e.into()))
}

/// The id the kernel gave this boot; zeros where it does not say. No process outlives it: it is asked for once.
pub(crate) fn boot_id() -> Result<[u8; 16]> {
    static KNOWN: OnceLock<[u8; 16]> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(*known);
    }
    let name = "/proc/sys/kernel/random/boot_id";
    let mut text = [0_u8; 36];
    let read = retry(|| fs::open(name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()))
        .and_then(|fd| retry(|| rustix::io::read(&fd, &mut text)))
        .map_err(|e| Error::io(format!("reading {name}"), e.into()))?;
    let mut id = [0_u8; 16];
    let digits = text[..read].iter().filter_map(|b| char::from(*b).to_digit(16));
    for (i, digit) in digits.take(32).enumerate() {
        id[i / 2] = (id[i / 2] << 4) | u8::try_from(digit).unwrap_or(0);
    }
    Ok(*KNOWN.get_or_init(|| id))
}

/// Goes on with what a short write leaves. One that writes nothing is an error, as it would for ever.
fn write_whole(
    bytes: &[u8],
    offset: u64,
    mut write: impl FnMut(&[u8], u64) -> Result<usize, Errno>,
) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match retry(|| write(&bytes[done..], offset + done as u64))? {
            0 => return Err(Errno::IO),
            n => done += n,
        }
    }
    Ok(())
}

/// The same with parts, of which at most so many are given to one call.
fn write_all_parts(
    mut parts: &mut [IoSlice<'_>],
    mut offset: u64,
    mut write: impl FnMut(&[IoSlice<'_>], u64) -> Result<usize, Errno>,
) -> Result<(), Errno> {
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        let some = &parts[..parts.len().min(MAX_PARTS)];
        match retry(|| write(some, offset))? {
            0 => return Err(Errno::IO),
            n => {
                IoSlice::advance_slices(&mut parts, n);
                offset += n as u64;
            }
        }
    }
    Ok(())
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

fn kind_of(file_type: FileType) -> Kind {
    match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Special,
    }
}

#[allow(
    clippy::unnecessary_cast,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "field types differ between architectures"
)]
fn stat_of(stat: &fs::Stat) -> Stat {
    Stat {
        kind: kind_of(FileType::from_raw_mode(stat.st_mode)),
        len: stat.st_size as u64,
        allocated: stat.st_blocks as u64 * 512,
        inode: stat.st_ino as u64,
        device: stat.st_dev as u64,
        modified_ns: (stat.st_mtime as i64).saturating_mul(1_000_000_000) + stat.st_mtime_nsec as i64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file whose writes are short, interrupted, and at last refused.
    #[test]
    fn a_short_write_is_gone_on_with_until_all_is_written_or_nothing_more_is() {
        let wanted: Vec<u8> = (0..200).collect();
        for most in [1, 3, 7, 64, 200, 1000] {
            let (mut file, mut calls) = (vec![0; 50], 0);
            let done = write_whole(&wanted, 50, |rest, at| {
                calls += 1;
                if calls % 3 == 1 {
                    return Err(Errno::INTR);
                }
                assert_eq!(at, file.len() as u64);
                let n = rest.len().min(most);
                file.extend_from_slice(&rest[..n]);
                Ok(n)
            });
            assert_eq!((done, &file[50..]), (Ok(()), &*wanted), "{most} at once");
        }
        let mut room = 120;
        let mut full = |rest: &[u8], _| {
            let n = rest.len().min(room).min(50);
            room -= n;
            if n == 0 { Err(Errno::NOSPC) } else { Ok(n) }
        };
        assert_eq!(write_whole(&wanted, 0, &mut full), Err(Errno::NOSPC));
        assert_eq!(write_whole(&wanted, 0, |_, _| Ok(0)), Err(Errno::IO));
        assert_eq!(write_whole(&[], 0, |_, _| unreachable!()), Ok(()));
    }

    #[test]
    fn parts_are_written_in_their_order_however_much_one_call_takes() {
        let wanted: Vec<u8> = (0..=250).cycle().take(5_000).collect();
        let lens = [0, 3, 0, 0, 700, 1, 0];
        for most in [1, 2, 64, 703, 9_999] {
            let (mut file, mut calls, mut rest) = (vec![0; 50], 0, &wanted[..]);
            let parts = lens.iter().cycle().map_while(|len| {
                let (part, behind) = rest.split_at((*len).min(rest.len()));
                rest = behind;
                (!behind.is_empty() || !part.is_empty()).then(|| IoSlice::new(part))
            });
            let done = write_all_parts(&mut parts.collect::<Vec<_>>(), 50, |some, at| {
                calls += 1;
                if calls % 3 == 1 {
                    return Err(Errno::INTR);
                }
                assert_eq!(at, file.len() as u64);
                let bytes: Vec<u8> = some.iter().flat_map(|part| part.iter().copied()).take(most).collect();
                file.extend_from_slice(&bytes);
                Ok(bytes.len())
            });
            assert_eq!((done, &file[50..]), (Ok(()), &*wanted), "{most} at once");
        }
        let single = [7_u8];
        let mut most = 0;
        let mut many = vec![IoSlice::new(&single); 3_000];
        let done = write_all_parts(&mut many, 0, |some, _| {
            most = most.max(some.len());
            Ok(some.len())
        });
        assert_eq!((done, most), (Ok(()), MAX_PARTS));
        let mut one = [IoSlice::new(&single)];
        assert_eq!(write_all_parts(&mut one, 0, |_, _| Ok(0)), Err(Errno::IO));
        assert_eq!(write_all_parts(&mut one, 0, |_, _| Err(Errno::NOSPC)), Err(Errno::NOSPC));
        assert_eq!(write_all_parts(&mut [IoSlice::new(&[])], 0, |_, _| unreachable!()), Ok(()));
    }
}
