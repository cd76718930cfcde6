//! What tests need: the conformance suite for [`Disk`](crate::disk::Disk), the crash explorer and
//! the ledger it judges by, the damage matrix.
//!
//! The simulated disk is [`disk::sim`](crate::disk::sim), the manual clock and the reproducible
//! entropy are in [`clock`](crate::clock).

pub mod damage;
pub mod explorer;
pub mod oracle;
pub mod sequences;
pub mod stage;
pub mod watched;
pub mod workloads;

/// The bytes of what records say, which otherwise the engine alone writes and reads: for fuzzing.
pub mod bodies {
    use crate::error::Result;
    use crate::record::Body;

    /// The payload of a record that says this, and the version of its schema.
    pub fn encode(body: &Body) -> Result<(Vec<u8>, u8)> {
        body.encode().map(|(bytes, version)| (bytes.into_owned(), version))
    }

    /// What a payload says; in words, why it does not follow its kind's schema.
    pub fn decode(kind: u8, version: u8, payload: Vec<u8>) -> Result<Body, String> {
        Body::decode(kind, version, payload)
    }
}

/// Checks that every [`Disk`](crate::disk::Disk) must pass, as far as they can be made without
/// crashing.
pub mod conformance {
    use crate::disk::{Disk, File, Kind, Open, Stat};
    use crate::error::{Error, Result};
    use std::collections::BTreeMap;
    use std::fmt::Debug;
    use std::sync::Arc;

    /// Two processes' views of one data directory that is empty at first.
    #[derive(Debug, Clone)]
    pub struct Pair {
        /// The first process.
        pub one: Arc<dyn Disk>,
        /// Another one.
        pub other: Arc<dyn Disk>,
    }

    /// A check: panics with what is wrong.
    pub type Check = fn(&Pair);

    /// Says which check it was that panicked.
    struct Running(&'static str);

    impl Drop for Running {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("in the conformance check '{}':", self.0);
            }
        }
    }

    /// Runs every check, each on an empty data directory: `make` gives two processes' views of one.
    ///
    /// # Panics
    ///
    /// If one of them fails.
    pub fn run_all(make: &dyn Fn() -> (Arc<dyn Disk>, Arc<dyn Disk>)) {
        for (name, check) in CHECKS {
            let _running = Running(name);
            let (one, other) = make();
            check(&Pair { one, other });
        }
    }

    macro_rules! checks {
        ($($check:ident),* $(,)?) => {
            /// All of them, with their names.
            pub const CHECKS: &[(&str, Check)] = &[$((stringify!($check), $check)),*];
        };
    }

    checks![
        a_missing_file_is_said_to_be_missing,
        a_file_is_made_only_where_asked,
        opening_does_not_change_content,
        unsynced_bytes_are_seen_by_everyone,
        reading_ends_at_the_end,
        a_gap_reads_as_zeros,
        a_length_can_be_set,
        neighbours_stay,
        an_empty_write_changes_nothing,
        many_bytes_go_in_one_call,
        reading_handles_do_not_write,
        rename_moves,
        a_name_stands_for_its_file,
        rename_replaces_only_if_told,
        rename_goes_across_directories,
        rename_refuses_what_makes_no_sense,
        an_open_file_outlives_its_name,
        removing_takes_files_only,
        directories_are_made_once,
        listing_shows_every_entry,
        listing_needs_a_directory,
        stat_tells_what_is_there,
        kinds_are_not_confused,
        the_time_of_change_does_not_go_back,
        a_lock_excludes_every_other_opening,
        a_lock_goes_with_the_last_handle,
        a_lock_belongs_to_the_file_not_the_name,
        directories_can_be_locked,
        names_do_not_lead_out,
        names_keep_their_bytes,
        syncing_changes_nothing_one_sees,
        a_session_is_the_same_for_all,
        writes_to_different_places_do_not_disturb,
        readers_see_the_old_or_the_new_file,
    ];

    #[track_caller]
    fn must<T>(result: Result<T>) -> T {
        match result {
            Ok(value) => value,
            Err(error) => panic!("should have succeeded: {error}"),
        }
    }

    #[track_caller]
    fn must_not<T: Debug>(result: Result<T>, what: &str) -> Error {
        match result {
            Ok(value) => panic!("{what} should have been refused, but gave {value:?}"),
            Err(error) => error,
        }
    }

    #[track_caller]
    fn stat(disk: &dyn Disk, name: &str) -> Stat {
        let Some(stat) = must(disk.stat(name)) else { panic!("{name} should be there") };
        stat
    }

    #[track_caller]
    fn put(disk: &dyn Disk, name: &str, bytes: &[u8]) -> Arc<dyn File> {
        let file = must(disk.open(name, Open::WriteOrCreate));
        must(file.write_at(bytes, 0));
        file
    }

    #[track_caller]
    fn content(file: &dyn File) -> Vec<u8> {
        let mut bytes = vec![0xee; usize::try_from(must(file.stat()).len).unwrap_or(usize::MAX)];
        assert_eq!(must(file.read_at(&mut bytes, 0)), bytes.len(), "a read was short before the end");
        bytes
    }

    #[track_caller]
    fn get(disk: &dyn Disk, name: &str) -> Vec<u8> {
        content(&*must(disk.open(name, Open::Read)))
    }

    #[track_caller]
    fn list(disk: &dyn Disk, name: &str) -> BTreeMap<String, Kind> {
        let mut found = BTreeMap::new();
        must(disk.list(name, &mut |entry, kind| {
            assert_eq!(found.insert(entry.to_owned(), kind), None, "{entry} was listed twice");
        }));
        found
    }

    fn a_missing_file_is_said_to_be_missing(disk: &Pair) {
        for how in [Open::Read, Open::Write, Open::Directory] {
            let error = must_not(disk.one.open("nothing", how), "opening nothing");
            assert!(error.is_missing(), "opening nothing with {how:?} gave {error}");
        }
        for how in [Open::Read, Open::WriteOrCreate, Open::CreateNew] {
            let error = must_not(disk.one.open("nowhere/file", how), "opening below nothing");
            assert!(error.is_missing(), "opening below nothing with {how:?} gave {error}");
        }
        assert!(must_not(disk.one.remove("nothing"), "removing nothing").is_missing());
        assert!(must_not(disk.one.sync_dir("nothing"), "syncing nothing").is_missing());
        assert_eq!(must(disk.one.stat("nothing")), None);
        assert_eq!(must(disk.one.stat("nowhere/file")), None);
        put(&*disk.one, "file", b"x");
        assert_eq!(must(disk.one.stat("file/below")), None, "nothing stands below a file");
        assert!(list(&*disk.one, ".").len() == 1, "a refused opening made something");
    }

    fn a_file_is_made_only_where_asked(disk: &Pair) {
        let file = must(disk.one.open("a", Open::CreateNew));
        assert_eq!(must(file.stat()).len, 0);
        must_not(disk.one.open("a", Open::CreateNew), "making the file again");
        must_not(disk.other.open("a", Open::CreateNew), "making the file again elsewhere");
        must(disk.other.open("a", Open::WriteOrCreate));
        must(disk.other.open("b", Open::WriteOrCreate));
        must(disk.one.open("b", Open::Write));
        assert_eq!(list(&*disk.one, ".").len(), 2);
    }

    fn opening_does_not_change_content(disk: &Pair) {
        put(&*disk.one, "a", b"content");
        for how in [Open::Read, Open::Write, Open::WriteOrCreate] {
            let file = must(disk.other.open("a", how));
            assert_eq!(content(&*file), b"content", "opened with {how:?}");
        }
    }

    fn unsynced_bytes_are_seen_by_everyone(disk: &Pair) {
        let early = must(disk.other.open("a", Open::WriteOrCreate));
        let file = put(&*disk.one, "a", b"hello");
        assert_eq!(content(&*early), b"hello");
        must(early.write_at(b"J", 0));
        assert_eq!(content(&*file), b"Jello");
        must(file.set_len(2));
        assert_eq!(get(&*disk.other, "a"), b"Je");
    }

    fn reading_ends_at_the_end(disk: &Pair) {
        let file = put(&*disk.one, "a", b"0123456789");
        let mut buf = [0xee; 8];
        assert_eq!(must(file.read_at(&mut buf, 6)), 4);
        assert_eq!(&buf, b"6789\xee\xee\xee\xee", "a short read must leave the rest of the buffer");
        assert_eq!(must(file.read_at(&mut buf, 10)), 0);
        assert_eq!(must(file.read_at(&mut buf, 1 << 40)), 0);
        assert_eq!(must(file.read_at(&mut [], 0)), 0);
    }

    fn a_gap_reads_as_zeros(disk: &Pair) {
        let file = put(&*disk.one, "a", b"x");
        must(file.write_at(b"y", 70_000));
        let mut expected = vec![0; 70_001];
        (expected[0], expected[70_000]) = (b'x', b'y');
        assert!(content(&*file) == expected, "a gap must read as zeros");
    }

    fn a_length_can_be_set(disk: &Pair) {
        let file = put(&*disk.one, "a", &[7; 1_500]);
        must(file.set_len(2_000));
        assert_eq!(content(&*file), [vec![7; 1_500], vec![0; 500]].concat());
        must(file.set_len(600));
        assert_eq!(content(&*file), vec![7; 600]);
        must(file.set_len(1_500));
        assert_eq!(content(&*file), [vec![7; 600], vec![0; 900]].concat(), "what was cut off came back");
        must(file.set_len(0));
        must(file.write_at(&[8], 9));
        assert_eq!(content(&*file), [0, 0, 0, 0, 0, 0, 0, 0, 0, 8], "what was cut off came back");
    }

    fn neighbours_stay(disk: &Pair) {
        let file = put(&*disk.one, "a", &[1; 5_000]);
        let mut expected = vec![1; 5_000];
        for (i, (offset, len)) in (10_u8..).zip([(0, 1), (511, 2), (1_024, 512), (1_000, 1_100), (4_999, 1)])
        {
            must(file.write_at(&vec![i; len], offset as u64));
            expected[offset..offset + len].fill(i);
            assert!(content(&*file) == expected, "writing {len} bytes at {offset} changed others");
        }
    }

    fn an_empty_write_changes_nothing(disk: &Pair) {
        let file = put(&*disk.one, "a", b"abc");
        must(file.write_at(&[], 0));
        must(file.write_at(&[], 100));
        assert_eq!(content(&*file), b"abc");
    }

    fn many_bytes_go_in_one_call(disk: &Pair) {
        let bytes: Vec<_> = (0..3_000_017_u32).map(|i| (i % 251).to_le_bytes()[0]).collect();
        put(&*disk.one, "a", &bytes);
        assert!(get(&*disk.other, "a") == bytes, "three million bytes came back changed");
    }

    fn reading_handles_do_not_write(disk: &Pair) {
        put(&*disk.one, "a", b"abc");
        let file = must(disk.one.open("a", Open::Read));
        must_not(file.write_at(b"x", 0), "writing through a handle for reading");
        must_not(file.set_len(0), "cutting through a handle for reading");
        must(file.sync());
        assert_eq!(content(&*file), b"abc");
    }

    fn rename_moves(disk: &Pair) {
        let file = put(&*disk.one, "a", b"abc");
        assert!(must(disk.one.rename("a", "b", false)), "a free name must be taken");
        assert_eq!(must(disk.other.stat("a")), None);
        assert_eq!(get(&*disk.other, "b"), b"abc");
        assert_eq!(stat(&*disk.other, "b").inode, must(file.stat()).inode, "a rename keeps the inode");
        assert!(must(disk.one.rename("b", "c", true)), "replacing nothing is a success");
        assert_eq!(list(&*disk.other, "."), BTreeMap::from([("c".into(), Kind::File)]));
        for replace in [false, true] {
            let error = must_not(disk.one.rename("nothing", "c", replace), "renaming nothing");
            assert!(error.is_missing(), "renaming nothing gave {error}");
        }
        assert!(must(disk.one.rename("c", "c", true)), "a file may replace itself");
        assert_eq!(get(&*disk.one, "c"), b"abc");
    }

    fn a_name_stands_for_its_file(disk: &Pair) {
        must(disk.one.create_dir("d"));
        let place = must(put(&*disk.one, "d/a", b"abc").stat());
        put(&*disk.one, "d/b", b"abc");
        let named = |name: &str| must(disk.other.is_named(name, place.device, place.inode));
        assert!(named("d/a") && !named("d/b") && !named("d/c") && !named("e/a") && !named("d/b/a"));
        assert!(!must(disk.one.is_named("d/a", place.device + 1, place.inode)));
        must(disk.one.rename("d/a", "d/c", false));
        assert!(named("d/c") && !named("d/a"));
        must(disk.one.rename("d/b", "d/c", true));
        assert!(!named("d/c"));
    }

    fn rename_replaces_only_if_told(disk: &Pair) {
        put(&*disk.one, "a", b"new");
        let old = put(&*disk.one, "b", b"old");
        assert!(!must(disk.one.rename("a", "b", false)), "a taken name must be left alone");
        assert_eq!((get(&*disk.one, "a"), get(&*disk.one, "b")), (b"new".to_vec(), b"old".to_vec()));
        assert!(must(disk.one.rename("a", "b", true)));
        assert_eq!(get(&*disk.other, "b"), b"new");
        assert_eq!(must(disk.other.stat("a")), None);
        assert_eq!(content(&*old), b"old", "the replaced file must stay readable where it is open");
    }

    fn rename_goes_across_directories(disk: &Pair) {
        must(disk.one.create_dir("d"));
        must(disk.one.create_dir("d/e"));
        put(&*disk.one, "a", b"abc");
        assert!(must(disk.one.rename("a", "d/e/b", false)));
        assert_eq!(get(&*disk.other, "d/e/b"), b"abc");
        assert!(must(disk.one.rename("d/e", "f", false)), "directories have names, too");
        assert_eq!(get(&*disk.other, "f/b"), b"abc");
        assert_eq!(must(disk.other.stat("d/e")), None);
    }

    fn rename_refuses_what_makes_no_sense(disk: &Pair) {
        must(disk.one.create_dir("d"));
        must(disk.one.create_dir("empty"));
        put(&*disk.one, "d/a", b"abc");
        put(&*disk.one, "file", b"x");
        must_not(disk.one.rename("file", "d", true), "replacing a directory by a file");
        must_not(disk.one.rename("d", "file", true), "replacing a file by a directory");
        must_not(disk.one.rename("empty", "d", true), "replacing a directory that is not empty");
        must_not(disk.one.rename("d", "d/below", false), "moving a directory below itself");
        must_not(disk.one.rename("file", "nowhere/file", false), "moving to no directory");
        assert_eq!(get(&*disk.one, "d/a"), b"abc");
        assert_eq!(get(&*disk.one, "file"), b"x");
        assert!(must(disk.one.rename("d", "empty", true)), "an empty directory may be replaced by one");
    }

    fn an_open_file_outlives_its_name(disk: &Pair) {
        let file = put(&*disk.one, "a", b"abc");
        let inode = must(file.stat()).inode;
        must(disk.other.remove("a"));
        assert_eq!(must(disk.one.stat("a")), None);
        must(file.write_at(b"d", 3));
        must(file.sync());
        assert_eq!(content(&*file), b"abcd");
        put(&*disk.one, "a", b"another");
        assert_ne!(stat(&*disk.one, "a").inode, inode, "an inode in use was given away");
        assert_eq!(must(file.stat()).inode, inode);
        assert_eq!(content(&*file), b"abcd");
    }

    fn removing_takes_files_only(disk: &Pair) {
        must(disk.one.create_dir("d"));
        put(&*disk.one, "a", b"abc");
        must_not(disk.one.remove("d"), "removing a directory as a file");
        must_not(disk.one.remove("."), "removing the data directory");
        must(disk.one.remove("a"));
        assert!(must_not(disk.other.remove("a"), "removing it twice").is_missing());
        assert_eq!(list(&*disk.one, "."), BTreeMap::from([("d".into(), Kind::Directory)]));
    }

    fn directories_are_made_once(disk: &Pair) {
        assert!(must(disk.one.create_dir("d")), "it was not there before");
        assert!(!must(disk.one.create_dir("d")), "it was already there");
        assert!(!must(disk.other.create_dir("d")), "it was already there for the other process");
        assert!(must(disk.other.create_dir("d/e")));
        assert!(must_not(disk.one.create_dir("no/where"), "making one below nothing").is_missing());
        put(&*disk.one, "a", b"abc");
        must_not(disk.one.create_dir("a/b"), "making one below a file");
        assert_eq!(stat(&*disk.one, "d/e").kind, Kind::Directory);
    }

    fn listing_shows_every_entry(disk: &Pair) {
        assert!(list(&*disk.one, ".").is_empty());
        must(disk.one.create_dir("d"));
        assert!(list(&*disk.other, "d").is_empty());
        let mut expected = BTreeMap::from([("e".to_owned(), Kind::Directory)]);
        must(disk.one.create_dir("d/e"));
        for i in 0..500 {
            let name = format!("file {i} with quite a long name, so that it takes more than one call");
            put(&*disk.one, &format!("d/{name}"), &[]);
            expected.insert(name, Kind::File);
        }
        assert!(list(&*disk.other, "d") == expected, "the list is not what was made");
        let mut seen = 0;
        must(disk.one.list("d", &mut |entry, _| {
            // A visitor may use the disk.
            seen += usize::from(must(disk.one.stat(&format!("d/{entry}"))).is_some());
        }));
        assert_eq!(seen, expected.len());
    }

    fn listing_needs_a_directory(disk: &Pair) {
        put(&*disk.one, "a", b"abc");
        must_not(disk.one.list("a", &mut |_, _| {}), "listing a file");
        must_not(disk.one.sync_dir("a"), "syncing a file as a directory");
        let error = must_not(disk.one.list("nothing", &mut |_, _| {}), "listing nothing");
        assert!(error.is_missing(), "listing nothing gave {error}");
    }

    fn stat_tells_what_is_there(disk: &Pair) {
        must(disk.one.create_dir("d"));
        let file = put(&*disk.one, "d/a", &[1; 1_234]);
        let by_handle = must(file.stat());
        let by_name = stat(&*disk.other, "d/a");
        assert_eq!((by_name.kind, by_name.len), (Kind::File, 1_234));
        assert_eq!((by_handle.kind, by_handle.len), (Kind::File, 1_234));
        assert_eq!((by_name.inode, by_name.device), (by_handle.inode, by_handle.device));
        put(&*disk.one, "d/b", &[1]);
        assert_ne!(stat(&*disk.one, "d/b").inode, by_name.inode, "two files have one inode");
        let (root, dir) = (stat(&*disk.one, "."), stat(&*disk.one, "d"));
        assert_eq!((root.kind, dir.kind), (Kind::Directory, Kind::Directory));
        assert_eq!((root.device, dir.device), (by_name.device, by_name.device));
        let locked = must(disk.one.open("d", Open::Directory));
        assert_eq!(must(locked.stat()).inode, dir.inode);
    }

    fn kinds_are_not_confused(disk: &Pair) {
        must(disk.one.create_dir("d"));
        put(&*disk.one, "a", b"abc");
        for how in [Open::Read, Open::Write, Open::WriteOrCreate, Open::CreateNew] {
            let error = must_not(disk.one.open("d", how), "opening a directory as a file");
            assert!(!error.is_missing(), "a directory opened with {how:?} is not missing");
        }
        must_not(disk.one.open("a", Open::Directory), "opening a file as a directory");
        must_not(disk.one.open("a/b", Open::WriteOrCreate), "opening below a file");
        let directory = must(disk.one.open("d", Open::Directory));
        must_not(directory.write_at(b"x", 0), "writing to a directory");
        must_not(directory.read_at(&mut [0], 0), "reading from a directory");
        must_not(directory.set_len(1), "giving a directory a length");
    }

    fn the_time_of_change_does_not_go_back(disk: &Pair) {
        let file = put(&*disk.one, "a", b"abc");
        let mut last = must(file.stat()).modified_ns;
        for i in 0..20 {
            must(file.write_at(b"x", i));
            let now = stat(&*disk.other, "a").modified_ns;
            assert!(now >= last, "the time of change went back from {last} to {now}");
            last = now;
        }
        content(&*file);
        must(file.sync());
        assert_eq!(must(file.stat()).modified_ns, last, "neither reading nor syncing is a change");
    }

    fn a_lock_excludes_every_other_opening(disk: &Pair) {
        let mine = put(&*disk.one, "lock", &[]);
        let again = must(disk.one.open("lock", Open::Write));
        let theirs = must(disk.other.open("lock", Open::Read));
        assert!(must(mine.try_lock()), "a free lock must be had");
        assert!(must(mine.try_lock()), "its holder may ask again");
        assert!(!must(again.try_lock()), "a second opening in the process must not get it");
        assert!(!must(theirs.try_lock()), "another process must not get it");
        must(theirs.unlock());
        assert!(!must(again.try_lock()), "unlocking without the lock must not free it");
        must(mine.unlock());
        assert!(must(theirs.try_lock()), "an unlocked lock must be had, also by a handle for reading");
        assert!(!must(mine.try_lock()));
        put(&*disk.one, "lock", b"a lock keeps nobody from writing");
    }

    fn a_lock_goes_with_the_last_handle(disk: &Pair) {
        let mine = put(&*disk.one, "lock", &[]);
        let theirs = must(disk.other.open("lock", Open::Write));
        assert!(must(mine.try_lock()));
        let clone = Arc::clone(&mine);
        drop(mine);
        assert!(!must(theirs.try_lock()), "a handle of the opening is left");
        drop(must(disk.one.open("lock", Open::Write)));
        assert!(!must(theirs.try_lock()), "closing another opening must not free the lock");
        drop(clone);
        assert!(must(theirs.try_lock()), "the last handle is gone");
    }

    fn a_lock_belongs_to_the_file_not_the_name(disk: &Pair) {
        let mine = put(&*disk.one, "lock", &[]);
        assert!(must(mine.try_lock()));
        assert!(must(disk.one.rename("lock", "elsewhere", false)));
        let theirs = must(disk.other.open("elsewhere", Open::Write));
        assert!(!must(theirs.try_lock()), "the renamed file is still locked");
        let new = put(&*disk.other, "lock", &[]);
        assert!(must(new.try_lock()), "a new file of the old name is not locked");
        assert_ne!(must(new.stat()).inode, must(mine.stat()).inode);
    }

    fn directories_can_be_locked(disk: &Pair) {
        must(disk.one.create_dir("d"));
        let mine = must(disk.one.open("d", Open::Directory));
        let theirs = must(disk.other.open("d", Open::Directory));
        assert!(must(mine.try_lock()));
        assert!(!must(theirs.try_lock()));
        put(&*disk.other, "d/a", b"a lock keeps nobody from writing");
        drop(mine);
        assert!(must(theirs.try_lock()));
        must(must(disk.one.open(".", Open::Directory)).try_lock());
    }

    fn names_do_not_lead_out(disk: &Pair) {
        must(disk.one.create_dir("d"));
        put(&*disk.one, "a", b"abc");
        for name in ["", "..", "../a", "d/../../a", "/", "/etc/passwd", "a\0b"] {
            for how in [Open::Read, Open::Write, Open::WriteOrCreate, Open::CreateNew, Open::Directory] {
                must_not(disk.one.open(name, how), &format!("opening {name:?} with {how:?}"));
            }
            must_not(disk.one.create_dir(name), &format!("making {name:?}"));
            must_not(disk.one.remove(name), &format!("removing {name:?}"));
            must_not(disk.one.rename(name, "b", true), &format!("renaming {name:?}"));
            must_not(disk.one.rename("a", name, true), &format!("renaming to {name:?}"));
            must_not(disk.one.list(name, &mut |_, _| {}), &format!("listing {name:?}"));
            must_not(disk.one.sync_dir(name), &format!("syncing {name:?}"));
            assert!(!matches!(disk.one.stat(name), Ok(Some(_))), "{name:?} leads somewhere");
        }
        must_not(disk.one.create_dir("."), "making the data directory");
        assert_eq!(list(&*disk.one, ".").len(), 2);
    }

    fn names_keep_their_bytes(disk: &Pair) {
        let long = "n".repeat(255);
        let names = [" ", "-rf", "a b", "ä→𝄞", "...", "..a", "a\nb", "A", "con", "%2F", "*", &long];
        for name in names {
            put(&*disk.one, name, name.as_bytes());
        }
        let listed = list(&*disk.other, ".");
        assert_eq!(listed.len(), names.len());
        for name in names {
            assert!(listed.contains_key(name), "{name:?} is not in the list");
            assert_eq!(get(&*disk.other, name), name.as_bytes());
        }
        must_not(disk.one.open(&"n".repeat(256), Open::CreateNew), "a name of 256 bytes");
    }

    fn syncing_changes_nothing_one_sees(disk: &Pair) {
        must(disk.one.create_dir("d"));
        let file = put(&*disk.one, "d/a", &[3; 3_000]);
        must(file.sync());
        must(file.sync());
        must(disk.one.sync_dir("d"));
        must(disk.other.sync_dir("."));
        must(file.drop_cache());
        assert_eq!(get(&*disk.other, "d/a"), vec![3; 3_000]);
        must(file.write_at(&[4; 1_000], 500));
        must(must(disk.other.open("d/a", Open::Read)).drop_cache());
        let expected = [vec![3; 500], vec![4; 1_000], vec![3; 1_500]].concat();
        assert_eq!(content(&*file), expected, "dropping caches lost dirty bytes");
        must(disk.one.sync_all());
        must(file.drop_cache());
        assert_eq!(content(&*file), expected);
    }

    fn a_session_is_the_same_for_all(disk: &Pair) {
        let one = must(disk.one.session());
        assert_eq!(must(disk.one.session()), one, "a session does not change");
        let other = must(disk.other.session());
        assert_eq!((other.boot, other.device), (one.boot, one.device));
        assert_ne!(one.boot, [0; 16], "a boot has an id");
        assert_eq!(must(disk.one.unreliable()), must(disk.other.unreliable()));
    }

    fn writes_to_different_places_do_not_disturb(disk: &Pair) {
        const EACH: usize = 997;
        put(&*disk.one, "a", &[]);
        std::thread::scope(|scope| {
            for (i, disk) in (1_u8..).zip([&disk.one, &disk.other, &disk.one, &disk.other]) {
                scope.spawn(move || {
                    let file = must(disk.open("a", Open::Write));
                    for round in 0..50 {
                        let at = (round * 4 + usize::from(i) - 1) * EACH;
                        must(file.write_at(&[i; EACH], at as u64));
                    }
                });
            }
        });
        let bytes = get(&*disk.one, "a");
        assert_eq!(bytes.len(), 200 * EACH);
        for (chunk, i) in bytes.chunks(EACH).zip([1, 2, 3, 4].into_iter().cycle()) {
            assert!(chunk.iter().all(|byte| *byte == i), "a write was lost or went astray");
        }
    }

    fn readers_see_the_old_or_the_new_file(disk: &Pair) {
        const ROUNDS: u8 = 100;
        put(&*disk.one, "state", &[0; 5_000]);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 1..=ROUNDS {
                    put(&*disk.one, "temporary", &vec![round; 5_000 + usize::from(round)]);
                    assert!(must(disk.one.rename("temporary", "state", true)));
                }
            });
            let mut last = 0;
            // A writer that panicked would never come to the last round.
            while last < ROUNDS && !writer.is_finished() {
                let bytes = get(&*disk.other, "state");
                let round = bytes[0];
                assert!(round >= last, "a reader went back from {last} to {round}");
                let whole = bytes.len() == 5_000 + usize::from(round) && bytes.iter().all(|b| *b == round);
                assert!(whole, "a reader saw a mixture");
                last = round;
            }
        });
    }
}
