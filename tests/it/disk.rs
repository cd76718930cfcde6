//! Both disks keep the contract; the simulated one loses exactly what the contract lets be lost.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use proptest::prelude::*;
use runwal::disk::os::OsDisk;
use runwal::disk::sim::{Choices, Fate, Fault, Image, SECTOR, SimDisk, SimWorld, Unit};
use runwal::disk::{Disk, File, Kind, Open};
use runwal::error::{Error, ErrorKind};
use runwal::testing::conformance;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const EIO: i32 = 5;
const ENOTDIR: i32 = 20;
const ENOSPC: i32 = 28;
const ELOOP: i32 = 40;

fn os_pair() -> (tempfile::TempDir, OsDisk, OsDisk) {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (OsDisk::open(dir.path()).unwrap(), OsDisk::open(dir.path()).unwrap());
    (dir, one, other)
}

#[test]
fn the_operating_system_conforms() {
    let dirs = RefCell::new(Vec::new());
    conformance::run_all(&|| {
        let (dir, one, other) = os_pair();
        dirs.borrow_mut().push(dir);
        (Arc::new(one), Arc::new(other))
    });
}

/// A process that another thread is starting has, until it is another program, everything that was
/// open: also the lock that is given up in that moment by closing its file.
#[test]
fn a_lock_that_is_dropped_is_free_at_once_also_while_processes_are_started() {
    let dir = tempfile::tempdir().unwrap();
    let disk = OsDisk::open(dir.path()).unwrap();
    let starting = AtomicBool::new(true);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..150 {
                    assert!(std::process::Command::new("true").status().unwrap().success());
                }
                starting.store(false, Ordering::SeqCst);
            });
        }
        while starting.load(Ordering::SeqCst) {
            let file = disk.open("lock", Open::WriteOrCreate).unwrap();
            assert!(file.try_lock().unwrap(), "somebody has it");
        }
    });
}

#[test]
fn the_simulation_conforms() {
    conformance::run_all(&|| {
        let world = SimWorld::new();
        (Arc::new(world.process(1)), Arc::new(world.process(2)))
    });
}

// Helpers: a world with one process, and what is left of it.

fn start() -> (SimWorld, SimDisk) {
    let world = SimWorld::new();
    let disk = world.process(1);
    (world, disk)
}

/// A world with the durable file `a` of these bytes, opened for writing.
fn with_file(bytes: &[u8]) -> (SimWorld, SimDisk, Arc<dyn File>) {
    let (world, disk) = start();
    world.write_file("a", bytes).unwrap();
    let file = disk.open("a", Open::Write).unwrap();
    (world, disk, file)
}

fn put(disk: &dyn Disk, name: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = disk.open(name, Open::WriteOrCreate).unwrap();
    file.write_at(bytes, 0).unwrap();
    file
}

fn get(disk: &dyn Disk, name: &str) -> Vec<u8> {
    let file = disk.open(name, Open::Read).unwrap();
    let mut bytes = vec![0; usize::try_from(file.stat().unwrap().len).unwrap()];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

fn all_old(world: &SimWorld) -> SimWorld {
    world.power_cut(&mut |_| Fate::Old)
}

fn all_new(world: &SimWorld) -> SimWorld {
    world.power_cut(&mut |_| Fate::New)
}

fn sectors(fills: &[u8]) -> Vec<u8> {
    fills.iter().flat_map(|fill| [*fill; 512]).collect()
}

fn tree(world: &SimWorld) -> BTreeMap<String, Vec<u8>> {
    world.names().into_iter().map(|name| (name.clone(), world.read_file(&name).unwrap())).collect()
}

/// Every world that a power cut may leave, as far as it shows in names and bytes.
fn worlds(world: &SimWorld) -> BTreeSet<BTreeMap<String, Vec<u8>>> {
    let choices = Choices::new(world, 12, 0, 0);
    assert!(choices.units().len() <= 12, "too many units to try all subsets");
    choices.map(|image| tree(&image.world())).collect()
}

/// The same, as the lists of names.
fn names(world: &SimWorld) -> BTreeSet<String> {
    worlds(world).into_iter().map(|tree| tree.into_keys().collect::<Vec<_>>().join(" ")).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

fn is_length(unit: &Unit) -> bool {
    matches!(unit, Unit::Length { .. })
}

fn is_dead(error: &Error) -> bool {
    error.message().contains("process is dead") && error.kind() == ErrorKind::Io
}

// What a power cut takes.

#[test]
fn only_synced_bytes_survive() {
    let (world, _, file) = with_file(b"");
    file.write_at(b"synced", 0).unwrap();
    file.sync().unwrap();
    assert_eq!(world.volatile(), [], "a sync leaves nothing volatile");
    file.write_at(b"later!", 0).unwrap();
    assert_eq!(world.read_file("a").unwrap(), b"later!");
    assert_eq!(all_old(&world).read_file("a").unwrap(), b"synced");
    assert_eq!(all_new(&world).read_file("a").unwrap(), b"later!");
    assert_eq!(world.read_file("a").unwrap(), b"later!", "the world before the cut stays");
}

#[test]
fn a_sync_is_of_one_file() {
    let (world, disk) = start();
    world.write_file("a", b"-").unwrap();
    world.write_file("b", b"-").unwrap();
    let a = put(&disk, "a", b"a");
    put(&disk, "b", b"b");
    a.sync().unwrap();
    let after = all_old(&world);
    assert_eq!(
        (after.read_file("a").unwrap(), after.read_file("b").unwrap()),
        (b"a".to_vec(), b"-".to_vec())
    );
}

#[test]
fn a_sync_through_a_handle_for_reading_is_one() {
    let (world, disk, file) = with_file(b"old");
    file.write_at(b"new", 0).unwrap();
    disk.open("a", Open::Read).unwrap().sync().unwrap();
    assert_eq!(all_old(&world).read_file("a").unwrap(), b"new");
}

#[test]
fn every_subset_of_sectors_may_survive() {
    let (world, _, file) = with_file(&sectors(&[1, 1, 1]));
    file.write_at(&sectors(&[2, 2, 2]), 0).unwrap();
    let found: BTreeSet<_> = worlds(&world).into_iter().map(|tree| tree["a"].clone()).collect();
    let mut expected = BTreeSet::new();
    for (a, b, c) in [(1, 1, 1), (1, 1, 2), (1, 2, 1), (1, 2, 2), (2, 1, 1), (2, 1, 2), (2, 2, 1), (2, 2, 2)]
    {
        expected.insert(sectors(&[a, b, c]));
    }
    assert_eq!(found, expected);
}

#[test]
fn bytes_beside_the_written_ones_stay_in_every_subset() {
    let (world, _, file) = with_file(&sectors(&[1, 1]));
    file.write_at(&[2; 4], 510).unwrap();
    for tree in worlds(&world) {
        assert_eq!((&tree["a"][..510], &tree["a"][514..]), (&[1; 510][..], &[1; 510][..]));
    }
}

#[test]
fn the_length_is_a_unit_of_its_own() {
    let (world, _, file) = with_file(b"");
    file.write_at(&[7; 600], 0).unwrap();
    assert_eq!(world.volatile().len(), 3, "two sectors and the length");
    let longer = world.power_cut(&mut |unit| if is_length(unit) { Fate::New } else { Fate::Old });
    assert_eq!(longer.read_file("a").unwrap(), [0; 600], "grown, but not written");
    let shorter = world.power_cut(&mut |unit| if is_length(unit) { Fate::Old } else { Fate::New });
    assert_eq!(shorter.read_file("a").unwrap(), b"", "written, but not grown");
    let disk = shorter.process(1);
    disk.open("a", Open::Write).unwrap().set_len(600).unwrap();
    assert_eq!(shorter.read_file("a").unwrap(), [0; 600], "what lay beyond the end must not come back");
}

#[test]
fn the_end_cuts_a_surviving_sector() {
    let (world, _, file) = with_file(&[1; 100]);
    file.write_at(&[2; 100], 50).unwrap();
    let image = world.power_cut(&mut |unit| if is_length(unit) { Fate::Old } else { Fate::New });
    assert_eq!(image.read_file("a").unwrap(), [[1; 50], [2; 50]].concat());
}

#[test]
fn a_cut_off_end_is_there_or_not() {
    let (world, _, file) = with_file(&sectors(&[1, 2, 3]));
    file.set_len(SECTOR).unwrap();
    let found: BTreeSet<_> = worlds(&world).into_iter().map(|tree| tree["a"].clone()).collect();
    assert_eq!(found, BTreeSet::from([sectors(&[1]), sectors(&[1, 2, 3])]));
    file.set_len(2 * SECTOR).unwrap();
    assert_eq!(world.read_file("a").unwrap(), sectors(&[1, 0]));
    let stale = world.power_cut(&mut |unit| if is_length(unit) { Fate::New } else { Fate::Old });
    assert_eq!(stale.read_file("a").unwrap(), sectors(&[1, 2]), "unsynced zeros may be lost as well");
    assert_eq!(all_new(&world).read_file("a").unwrap(), sectors(&[1, 0]));
    file.sync().unwrap();
    assert_eq!(all_old(&world).read_file("a").unwrap(), sectors(&[1, 0]));
}

#[test]
fn zeros_and_garbage_come_to_fresh_sectors_only() {
    let (world, _, file) = with_file(&sectors(&[1]));
    file.write_at(&sectors(&[2, 2]), 0).unwrap();
    let cut = |fate| {
        world.power_cut(&mut |unit| if is_length(unit) { Fate::New } else { fate }).read_file("a").unwrap()
    };
    assert_eq!(cut(Fate::Zero), sectors(&[1, 0]));
    let garbage = cut(Fate::Garbage);
    assert_eq!(garbage[..512], sectors(&[1]));
    assert!(![[0; 512], [1; 512], [2; 512]].iter().any(|known| garbage[512..] == *known));
    assert_eq!(cut(Fate::Garbage), garbage, "garbage is reproducible");
    file.sync().unwrap();
    file.write_at(&sectors(&[3, 3]), 0).unwrap();
    assert_eq!(cut(Fate::Garbage), sectors(&[2, 2]), "what was durable is old or new");
}

#[test]
fn the_kernel_may_write_back_at_any_time() {
    let (world, _, file) = with_file(&sectors(&[1, 1]));
    file.write_at(&sectors(&[2, 2]), 0).unwrap();
    world.write_back(&world.volatile()[1]);
    file.write_at(&sectors(&[3, 3]), 0).unwrap();
    assert_eq!(all_old(&world).read_file("a").unwrap(), sectors(&[1, 2]));
    assert_eq!(all_new(&world).read_file("a").unwrap(), sectors(&[3, 3]));
}

#[test]
fn an_unlinked_file_leaves_no_units() {
    let (world, disk, file) = with_file(b"old");
    disk.remove("a").unwrap();
    disk.sync_dir(".").unwrap();
    file.write_at(b"new", 0).unwrap();
    assert_eq!(world.volatile(), []);
}

// Directories.

#[test]
fn a_name_survives_only_with_its_directory() {
    let (world, disk) = start();
    disk.create_dir("d").unwrap();
    disk.sync_dir(".").unwrap();
    put(&disk, "d/a", b"abc").sync().unwrap();
    assert_eq!(names(&world), set(["", "d/a"]));
    disk.sync_dir(".").unwrap();
    assert_eq!(names(&world), set(["", "d/a"]), "another directory's sync is none of this one");
    disk.sync_dir("d").unwrap();
    assert_eq!(names(&world), set(["d/a"]));
    assert_eq!(all_old(&world).read_file("d/a").unwrap(), b"abc");
}

#[test]
fn a_directory_survives_only_with_its_parent() {
    let (world, disk) = start();
    disk.create_dir("d").unwrap();
    put(&disk, "d/a", b"abc").sync().unwrap();
    disk.sync_dir("d").unwrap();
    assert_eq!(names(&world), set(["", "d/a"]));
    let lost = all_old(&world);
    assert_eq!(lost.process(1).stat("d").unwrap(), None);
    disk.sync_dir(".").unwrap();
    assert_eq!(names(&world), set(["d/a"]));
}

#[test]
fn a_name_can_survive_without_its_bytes() {
    let (world, disk) = start();
    put(&disk, "tmp", b"content");
    disk.rename("tmp", "state", true).unwrap();
    disk.sync_dir(".").unwrap();
    assert_eq!(all_old(&world).read_file("state").unwrap(), b"");
}

#[test]
fn a_rename_is_undone_or_done() {
    let (world, disk) = start();
    world.write_file("state", b"old").unwrap();
    world.write_file("tmp", b"new").unwrap();
    disk.rename("tmp", "state", true).unwrap();
    let before = BTreeMap::from([("state".into(), b"old".to_vec()), ("tmp".into(), b"new".to_vec())]);
    let after = BTreeMap::from([("state".into(), b"new".to_vec())]);
    assert_eq!(worlds(&world), BTreeSet::from([before, after.clone()]));
    disk.sync_dir(".").unwrap();
    assert_eq!(worlds(&world), BTreeSet::from([after]));
}

#[test]
fn a_rename_across_directories_is_undone_or_done() {
    for synced in ["d", "."] {
        let (world, disk) = start();
        world.write_file("a", b"abc").unwrap();
        world.plant("d", Kind::Directory).unwrap();
        disk.rename("a", "d/b", false).unwrap();
        assert_eq!(names(&world), set(["a", "d/b"]));
        disk.sync_dir(synced).unwrap();
        assert_eq!(names(&world), set(["d/b"]), "after syncing {synced}");
    }
}

#[test]
fn a_removal_may_be_undone() {
    let (world, disk, _) = with_file(b"abc");
    disk.remove("a").unwrap();
    assert_eq!(names(&world), set(["", "a"]));
    disk.sync_dir(".").unwrap();
    assert_eq!(names(&world), set([""]));
}

#[test]
fn changes_of_different_names_survive_in_any_subset() {
    let (world, disk) = start();
    disk.open("a", Open::CreateNew).unwrap();
    disk.open("b", Open::CreateNew).unwrap();
    assert_eq!(names(&world), set(["", "a", "b", "a b"]));
}

#[test]
fn changes_of_one_name_survive_in_their_order() {
    let (world, disk, _) = with_file(b"precious");
    disk.rename("a", "b", false).unwrap();
    disk.open("a", Open::CreateNew).unwrap();
    for tree in worlds(&world) {
        assert!(tree.values().any(|bytes| bytes == b"precious"), "the renamed file has vanished: {tree:?}");
    }
    assert_eq!(names(&world), set(["a", "b", "a b"]));
    disk.remove("a").unwrap();
    disk.sync_dir(".").unwrap();
    assert_eq!(names(&world), set(["b"]));
}

#[test]
fn sync_all_makes_everything_durable() {
    let (world, disk) = start();
    disk.create_dir("d").unwrap();
    put(&disk, "d/a", b"a");
    put(&disk, "b", b"b");
    disk.sync_all().unwrap();
    assert_eq!(world.volatile(), []);
    assert_eq!(tree(&all_old(&world)), tree(&world));
    assert_eq!(names(&world), set(["b d/a"]));
}

// Failed syncs.

/// A file of four sectors of ones, over which twos are written and a sync fails: of its units the
/// ones in `survivors` have become durable.
fn after_failed_sync(survivors: u64) -> (SimWorld, SimDisk, Arc<dyn File>) {
    let (world, disk, file) = with_file(&sectors(&[1, 1, 1, 1]));
    file.write_at(&sectors(&[2, 2, 2, 2]), 0).unwrap();
    world.fail_at(2, Fault::Error { errno: EIO, sticky: false, survivors });
    assert_eq!(file.sync().unwrap_err().os_error(), Some(EIO));
    (world, disk, file)
}

#[test]
fn a_failed_sync_keeps_the_chosen_units_and_cleans_all() {
    let (world, disk, file) = after_failed_sync(0b0101);
    assert_eq!(world.volatile(), [], "all pages are marked clean");
    assert_eq!(get(&disk, "a"), sectors(&[2, 2, 2, 2]), "the cache still shows what was written");
    assert_eq!(all_new(&world).read_file("a").unwrap(), sectors(&[2, 1, 2, 1]));
    file.sync().unwrap();
    disk.sync_all().unwrap();
    assert_eq!(get(&disk, "a"), sectors(&[2, 2, 2, 2]));
    assert_eq!(
        all_new(&world).read_file("a").unwrap(),
        sectors(&[2, 1, 2, 1]),
        "a second sync writes nothing"
    );
}

#[test]
fn eviction_shows_what_a_failed_sync_has_lost() {
    let (world, disk, file) = after_failed_sync(0b0101);
    assert!(world.evict("a", 1).unwrap());
    assert_eq!(get(&disk, "a"), sectors(&[2, 1, 2, 2]));
    file.drop_cache().unwrap();
    assert_eq!(get(&disk, "a"), sectors(&[2, 1, 2, 1]));
    file.write_at(&[3], 0).unwrap();
    assert!(!world.evict("a", 0).unwrap(), "a dirty sector is not evicted");
    file.drop_cache().unwrap();
    assert_eq!(get(&disk, "a")[0], 3);
}

#[test]
fn bytes_written_again_after_a_failed_sync_are_synced() {
    let (world, _, file) = after_failed_sync(0);
    file.write_at(&sectors(&[3]), SECTOR).unwrap();
    file.sync().unwrap();
    assert_eq!(all_old(&world).read_file("a").unwrap(), sectors(&[1, 3, 1, 1]));
}

#[test]
fn a_failed_sync_can_lose_the_length() {
    let (world, disk, file) = with_file(&sectors(&[1]));
    file.write_at(&sectors(&[2, 2]), 0).unwrap();
    let lengths: Vec<_> = world.volatile().iter().map(is_length).collect();
    let all_but_length = (0..).zip(lengths).fold(0, |bits, (i, length)| bits | (u64::from(!length) << i));
    world.fail_at(2, Fault::Error { errno: EIO, sticky: false, survivors: all_but_length });
    file.sync().unwrap_err();
    file.sync().unwrap();
    assert_eq!(get(&disk, "a"), sectors(&[2, 2]));
    assert_eq!(all_new(&world).read_file("a").unwrap(), sectors(&[2]));
    file.set_len(3 * SECTOR).unwrap();
    file.sync().unwrap();
    assert_eq!(all_old(&world).read_file("a").unwrap(), sectors(&[2, 2, 0]), "changed again, synced again");
}

#[test]
fn a_failed_sync_of_a_directory_loses_names_for_good() {
    let (world, disk) = start();
    for name in ["a", "b", "c"] {
        disk.open(name, Open::CreateNew).unwrap();
    }
    world.fail_at(4, Fault::Error { errno: EIO, sticky: false, survivors: 0b010 });
    disk.sync_dir(".").unwrap_err();
    disk.sync_dir(".").unwrap();
    assert_eq!(world.names(), ["a", "b", "c"]);
    assert_eq!(all_new(&world).names(), ["b"]);
}

#[test]
fn a_failed_sync_all_concerns_everything() {
    let (world, disk) = start();
    world.write_file("a", b"old").unwrap();
    put(&disk, "a", b"new");
    disk.open("b", Open::CreateNew).unwrap();
    world.fail_at(4, Fault::once(EIO));
    disk.sync_all().unwrap_err();
    disk.sync_all().unwrap();
    let after = all_new(&world);
    assert_eq!((after.names(), after.read_file("a").unwrap()), (vec!["a".to_owned()], b"old".to_vec()));
}

// Processes and faults.

#[test]
fn a_killed_process_leaves_its_bytes_and_no_lock() {
    let (world, disk, file) = with_file(b"old");
    file.write_at(b"new", 0).unwrap();
    assert!(file.try_lock().unwrap());
    let other = world.process(2);
    let theirs = other.open("a", Open::Write).unwrap();
    assert!(!theirs.try_lock().unwrap());
    disk.kill();
    assert!(!disk.is_alive() && other.is_alive());
    assert!(theirs.try_lock().unwrap());
    assert_eq!(get(&other, "a"), b"new");
    let errors = [
        file.read_at(&mut [0], 0).unwrap_err(),
        file.write_at(b"x", 0).unwrap_err(),
        file.sync().unwrap_err(),
        file.set_len(0).unwrap_err(),
        file.stat().unwrap_err(),
        file.try_lock().unwrap_err(),
        file.unlock().unwrap_err(),
        file.drop_cache().unwrap_err(),
        disk.open("a", Open::Read).unwrap_err(),
        disk.create_dir("d").unwrap_err(),
        disk.rename("a", "b", true).unwrap_err(),
        disk.remove("a").unwrap_err(),
        disk.list(".", &mut |_, _| {}).unwrap_err(),
        disk.stat("a").unwrap_err(),
        disk.sync_dir(".").unwrap_err(),
        disk.sync_all().unwrap_err(),
        disk.session().unwrap_err(),
        disk.unreliable().unwrap_err(),
    ];
    assert!(errors.iter().all(is_dead), "{errors:?}");
    drop(file);
    assert!(!other.open("a", Open::Write).unwrap().try_lock().unwrap(), "the dead free no one's lock");
    assert_eq!(get(&other, "a"), b"new");
}

#[test]
fn operations_are_counted_and_traced() {
    let (world, disk) = start();
    world.record();
    let file = disk.open("a", Open::CreateNew).unwrap();
    file.write_at(b"abc", 5).unwrap();
    file.set_len(7).unwrap();
    file.sync().unwrap();
    disk.create_dir("d").unwrap();
    disk.rename("a", "d/a", false).unwrap();
    disk.sync_dir("d").unwrap();
    disk.remove("d/a").unwrap();
    disk.remove("d/a").unwrap_err();
    world.process(1).sync_all().unwrap();
    // None of these is an operation.
    assert!(disk.open("nothing", Open::Read).is_err());
    disk.stat("d").unwrap();
    file.read_at(&mut [0], 0).unwrap();
    file.write_at(&[], 0).unwrap();
    assert_eq!(world.operations(), 10);
    let trace: Vec<_> = world.trace().iter().map(ToString::to_string).collect();
    assert_eq!(
        trace,
        [
            "#1 process 1: create a",
            "#2 process 1: write a 3 bytes at 5",
            "#3 process 1: set_len a to 7",
            "#4 process 1: sync a, units: 2",
            "#5 process 1: create_dir d",
            "#6 process 1: rename a to d/a",
            "#7 process 1: sync_dir d, units: 1",
            "#8 process 1: remove d/a",
            "#9 process 1: remove d/a",
            "#10 process 2: sync_all ., units: 2",
        ]
    );
}

/// One operation of each kind, each of which has an effect.
fn one_of_each(disk: &SimDisk) -> Result<(), Error> {
    disk.open("b", Open::WriteOrCreate)?;
    let file = disk.open("a", Open::Write)?;
    file.write_at(b"x", 0)?;
    file.set_len(1)?;
    disk.create_dir("d")?;
    disk.rename("b", "c", true)?;
    disk.remove("c")?;
    file.sync()?;
    disk.sync_dir(".")?;
    disk.sync_all()
}

#[test]
fn every_operation_can_be_the_last() {
    for n in 1..=9 {
        for (fault, dead) in [(Fault::Kill, true), (Fault::PowerCut, false)] {
            let (world, disk, _) = with_file(b"abc");
            let (twin, undisturbed, _) = with_file(b"abc");
            let other = world.process(2);
            twin.fail_at(n, Fault::once(ENOSPC));
            assert_eq!(one_of_each(&undisturbed).unwrap_err().os_error(), Some(ENOSPC));
            world.fail_at(n, fault);
            let error = one_of_each(&disk).unwrap_err();
            assert_eq!(is_dead(&error), dead, "{fault:?} at {n} gave {error}");
            assert_eq!(world.operations(), n);
            assert_eq!(tree(&world), tree(&twin), "{fault:?} at {n} came after the operation");
            assert_eq!(other.stat("a").is_ok(), dead, "{fault:?} at {n}");
            assert_eq!(disk.is_alive(), !dead);
            let after = all_new(&world);
            assert_eq!(tree(&after), tree(&world));
            one_of_each(&after.process(1)).unwrap();
        }
    }
    let (world, disk, _) = with_file(b"abc");
    one_of_each(&disk).unwrap();
    assert_eq!(world.operations(), 9);
}

#[test]
fn a_dying_write_tears_at_a_sector() {
    for (k, len) in [(0, 0), (1, 412), (2, 924), (3, 1_000), (99, 1_000)] {
        let (world, disk, file) = with_file(b"");
        file.set_len(2_000).unwrap();
        world.fail_at(2, Fault::KillAfterSectors(k));
        assert!(is_dead(&file.write_at(&[7; 1_000], 100).unwrap_err()));
        assert!(!disk.is_alive());
        let expected = [vec![0; 100], vec![7; len], vec![0; 1_900 - len]].concat();
        assert!(world.read_file("a").unwrap() == expected, "after {k} sectors");
    }
}

#[test]
fn a_short_write_writes_its_beginning() {
    let (world, disk, file) = with_file(b"abcdef");
    world.fail_at(1, Fault::Short { bytes: 2, errno: ENOSPC });
    let error = file.write_at(b"XYZ", 1).unwrap_err();
    assert_eq!((error.os_error(), error.kind()), (Some(ENOSPC), ErrorKind::Full));
    assert_eq!(get(&disk, "a"), b"aXYdef");
    world.fail_at(2, Fault::Short { bytes: 2, errno: ENOSPC });
    assert_eq!(disk.remove("a").unwrap_err().os_error(), Some(ENOSPC));
    file.write_at(b"Z", 3).unwrap();
    assert_eq!(get(&disk, "a"), b"aXYZef");
}

#[test]
fn an_error_comes_once_or_stays() {
    let (world, disk, file) = with_file(b"abc");
    world.fail_at(1, Fault::once(EIO));
    assert_eq!(file.write_at(b"x", 0).unwrap_err().os_error(), Some(EIO));
    assert_eq!(get(&disk, "a"), b"abc", "an error does nothing");
    file.write_at(b"x", 0).unwrap();
    world.fail_at(4, Fault::sticky(ENOSPC));
    file.write_at(b"y", 0).unwrap();
    for _ in 0..3 {
        assert_eq!(file.write_at(b"z", 0).unwrap_err().os_error(), Some(ENOSPC));
        assert_eq!(disk.create_dir("d").unwrap_err().os_error(), Some(ENOSPC));
        assert_eq!(file.sync().unwrap_err().os_error(), Some(ENOSPC));
    }
    assert_eq!(get(&disk, "a"), b"ybc", "reading goes on");
    world.clear_faults();
    file.write_at(b"z", 0).unwrap();
}

// Worlds.

#[test]
fn a_fork_is_independent_and_without_processes() {
    let (world, disk, file) = with_file(b"abc");
    file.write_at(b"x", 0).unwrap();
    assert!(file.try_lock().unwrap());
    let fork = world.fork();
    assert_eq!((fork.volatile(), fork.digest()), (world.volatile(), world.digest()));
    file.write_at(b"y", 0).unwrap();
    disk.open("b", Open::CreateNew).unwrap();
    assert_eq!(fork.read_file("a").unwrap(), b"xbc");
    assert_eq!(fork.names(), ["a"]);
    let in_fork = fork.process(1);
    let theirs = in_fork.open("a", Open::Write).unwrap();
    assert!(theirs.try_lock().unwrap(), "the lock went with the process");
    theirs.write_at(b"z", 0).unwrap();
    theirs.sync().unwrap();
    assert_eq!(get(&disk, "a"), b"ybc");
    assert_eq!(all_old(&world).read_file("a").unwrap(), b"abc");
    assert_eq!(all_old(&fork).read_file("a").unwrap(), b"zbc");
    assert_eq!(in_fork.session().unwrap().boot, disk.session().unwrap().boot);
}

#[test]
fn a_reboot_has_another_session_and_no_locks() {
    let (world, disk, file) = with_file(b"abc");
    assert!(file.try_lock().unwrap());
    world.fail_at(99, Fault::Kill);
    let session = disk.session().unwrap();
    assert_ne!(world.process(7).session().unwrap(), session, "the mount is part of the session");
    let after = all_new(&world);
    let disk = after.process(1);
    let again = disk.session().unwrap();
    assert_ne!(again.boot, session.boot);
    assert_eq!((again.device, again.mount), (session.device, session.mount));
    let reopened = disk.open("a", Open::Write).unwrap();
    assert!(reopened.try_lock().unwrap());
    assert_eq!(reopened.stat().unwrap().inode, file.stat().unwrap().inode);
    assert_eq!(after.operations(), 0);
    for _ in 0..100 {
        disk.sync_dir(".").unwrap();
    }
    assert_ne!(all_new(&after).process(1).session().unwrap().boot, again.boot);
}

#[test]
fn inode_numbers_are_never_used_again() {
    let (mut world, mut disk) = start();
    let mut seen = BTreeSet::new();
    for i in 0..20 {
        let file = disk.open("a", Open::CreateNew).unwrap();
        assert!(seen.insert(file.stat().unwrap().inode));
        if i % 2 == 0 {
            disk.remove("a").unwrap();
        } else {
            world = all_old(&all_old(&world));
            disk = world.process(1);
        }
    }
}

#[test]
fn every_write_moves_the_time_of_change() {
    let (world, disk, file) = with_file(b"abc");
    let mut last = file.stat().unwrap().modified_ns;
    for i in 0..10 {
        if i % 2 == 0 { file.write_at(b"x", 0) } else { file.set_len(i) }.unwrap();
        file.sync().unwrap();
        let now = disk.stat("a").unwrap().unwrap().modified_ns;
        assert!(now > last);
        last = now;
    }
    assert_eq!(all_new(&world).process(1).stat("a").unwrap().unwrap().modified_ns, last);
}

#[test]
fn surgery_is_durable_at_once() {
    let (world, disk) = start();
    world.write_file("d/e/a", b"abc").unwrap();
    world.write_file("b", &[1; 2_000]).unwrap();
    let inode = disk.stat("b").unwrap().unwrap().inode;
    world.write_file("b", b"short").unwrap();
    assert_eq!(disk.stat("b").unwrap().unwrap().inode, inode);
    world.rename_file("b", "d/b").unwrap();
    world.write_file("c", b"").unwrap();
    world.remove_file("c").unwrap();
    assert_eq!(world.volatile(), []);
    assert_eq!(world.names(), ["d/b", "d/e/a"]);
    assert_eq!(all_old(&world).read_file("d/e/a").unwrap(), b"abc");
    assert_eq!(all_old(&world).read_file("d/b").unwrap(), b"short");
    assert_eq!(world.operations(), 0, "surgery is not counted");
    assert!(
        world.read_file("c").is_err() && world.remove_file("c").is_err() && world.read_file("d").is_err()
    );
    put(&disk, "d/b", b"SHORT");
    assert_eq!(world.read_file("d/b").unwrap(), b"SHORT", "the cached bytes");
    disk.open("new", Open::CreateNew).unwrap();
    world.rename_file("new", "newer").unwrap();
    assert_eq!(all_old(&world).names(), ["d/b", "d/e/a", "newer"], "what it rests on is durable, too");
}

#[test]
fn a_copy_has_the_same_bytes_on_new_inodes() {
    let (world, disk) = start();
    world.write_file("d/a", b"abc").unwrap();
    put(&disk, "b", b"unsynced");
    world.plant("link", Kind::Symlink).unwrap();
    let copy = world.copy_to_new_inodes();
    assert_eq!((copy.names(), copy.volatile()), (world.names(), vec![]));
    assert_eq!(copy.read_file("b").unwrap(), b"unsynced");
    let copied = copy.process(1);
    for name in [".", "d", "d/a", "b", "link"] {
        let (old, new) = (disk.stat(name).unwrap().unwrap(), copied.stat(name).unwrap().unwrap());
        assert_ne!(old.inode, new.inode, "{name}");
        assert_eq!((old.kind, old.len), (new.kind, new.len), "{name}");
    }
    assert_eq!(copied.session().unwrap(), disk.session().unwrap());
    put(&copied, "d/a", b"ABC");
    assert_eq!(world.read_file("d/a").unwrap(), b"abc");
    assert_eq!(all_old(&copy).names(), copy.names());
}

#[test]
fn planted_links_and_fifos_are_refused_as_by_the_operating_system() {
    let (dir, os, _) = os_pair();
    std::os::unix::fs::symlink(".", dir.path().join("link")).unwrap();
    let (mode, cwd) = (rustix::fs::Mode::from_raw_mode(0o600), rustix::fs::CWD);
    rustix::fs::mknodat(cwd, dir.path().join("fifo"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let (world, sim) = start();
    world.plant("link", Kind::Symlink).unwrap();
    world.plant("fifo", Kind::Special).unwrap();
    assert_eq!(world.volatile(), []);
    for disk in [&os as &dyn Disk, &sim] {
        put(disk, "file", b"abc");
    }
    for name in ["link", "fifo", "link/file", "fifo/file", "link/link", "file/file", "nothing/file"] {
        // A link on the way may be called one too many or no directory.
        let errno = |error: Error| match error.os_error() {
            Some(ELOOP) if name != "link" => (error.kind(), Some(ENOTDIR)),
            other => (error.kind(), other),
        };
        for how in [Open::Read, Open::Write, Open::WriteOrCreate, Open::CreateNew, Open::Directory] {
            let open = |disk: &dyn Disk| errno(disk.open(name, how).unwrap_err());
            assert_eq!(open(&sim), open(&os), "opening {name} with {how:?}");
        }
        let stat = |disk: &dyn Disk| disk.stat(name).map(|s| s.map(|s| s.kind)).map_err(errno);
        assert_eq!(stat(&sim), stat(&os), "looking at {name}");
        let list = |disk: &dyn Disk| disk.list(name, &mut |_, _| {}).map_err(errno);
        assert_eq!(list(&sim), list(&os), "listing {name}");
    }
    for disk in [&os as &dyn Disk, &sim] {
        disk.rename("link", "other", false).unwrap();
        disk.remove("other").unwrap();
        disk.remove("fifo").unwrap();
    }
    assert_eq!(world.names(), ["file"]);
}

#[test]
fn the_simulation_takes_no_odd_components() {
    let (world, disk) = start();
    world.write_file("d/a", b"abc").unwrap();
    for name in ["d//a", "d/../d/a", "/d/a", "d/", "..", ""] {
        assert!(disk.open(name, Open::Read).is_err(), "{name:?}");
        assert!(disk.open(name, Open::WriteOrCreate).is_err(), "{name:?}");
        assert!(disk.stat(name).is_err(), "{name:?}");
    }
}

#[test]
fn units_are_described() {
    let (world, disk) = start();
    world.plant("d", Kind::Directory).unwrap();
    put(&disk, "d/a", &[1; 600]);
    disk.rename("d/a", "b", false).unwrap();
    let words: Vec<_> = world.volatile().iter().map(|unit| world.describe(unit)).collect();
    let expected = [
        "entries of d: +a (inode 3)",
        "length of b",
        "sector 0 of b",
        "sector 1 of b",
        "entries of .: -a +b (inode 3)",
    ];
    assert_eq!(words, expected);
    assert!(world.volatile().is_sorted_by_key(Unit::order));
    assert!(format!("{world:?} {disk:?}").contains("SimWorld"));
}

// Choices.

#[test]
fn choices_give_every_distinct_image_once() {
    let (world, _, file) = with_file(&sectors(&[1, 1, 1, 1]));
    for (i, fill) in [(0, 2), (1, 2), (2, 2), (3, 2)] {
        file.write_at(&sectors(&[fill]), i * SECTOR).unwrap();
    }
    let bytes = |choices: Choices| {
        let images: Vec<_> = choices.map(|image| image.world().read_file("a").unwrap()).collect();
        let distinct: BTreeSet<_> = images.iter().cloned().collect();
        assert_eq!(images.len(), distinct.len(), "an image came twice");
        distinct
    };
    assert_eq!(bytes(Choices::new(&world, 4, 0, 0)).len(), 16);
    let some = bytes(Choices::new(&world, 3, 0, 0));
    let expected: BTreeSet<_> = [
        [2, 2, 2, 2], // all
        [1, 1, 1, 1], // none
        [1, 2, 2, 2], // each single one old
        [2, 1, 2, 2],
        [2, 2, 1, 2],
        [2, 2, 2, 1],
        [2, 1, 1, 1], // each single one new, of which the first is also a prefix
        [1, 2, 1, 1],
        [1, 1, 2, 1],
        [1, 1, 1, 2],
        [2, 2, 1, 1], // the other prefix
    ]
    .iter()
    .map(|fills| sectors(fills))
    .collect();
    assert_eq!(some, expected);
    let sampled = bytes(Choices::new(&world, 3, 20, 7));
    assert!(sampled.len() > some.len());
    assert_eq!(bytes(Choices::new(&world, 3, 20, 7)), sampled, "samples follow from the seed");
}

#[test]
fn choices_tell_the_fates_and_try_garbage() {
    let (world, _, file) = with_file(b"");
    file.write_at(&sectors(&[2, 2]), 0).unwrap();
    let choices = Choices::new(&world, 10, 0, 0);
    let world = world.fork();
    file.write_at(b"not any more of this cut", 0).unwrap();
    let units = choices.units().to_vec();
    let mut garbage = 0;
    for image in choices {
        let Image { fates, digest, .. } = &image;
        assert_eq!(image.world().digest(), *digest);
        let mut fate = fates.iter();
        let again = world.power_cut(&mut |unit| {
            assert_ne!(world.describe(unit), "", "who decides may ask");
            *fate.next().unwrap()
        });
        assert_eq!(again.digest(), *digest);
        let garbled = units.iter().zip(fates).any(|(unit, fate)| *fate == Fate::Garbage && !is_length(unit));
        garbage += usize::from(garbled);
    }
    assert_eq!(garbage, 2, "each sector once");
    assert_eq!(Choices::new(&SimWorld::new(), 0, 0, 0).count(), 1, "nothing volatile, one image");
}

#[test]
fn the_digest_sees_what_is_durable() {
    let (world, disk, file) = with_file(b"abc");
    let mut seen = BTreeSet::from([world.digest()]);
    file.write_at(b"x", 0).unwrap();
    assert!(!seen.insert(world.digest()), "unsynced bytes are not durable");
    file.sync().unwrap();
    assert!(seen.insert(world.digest()), "bytes");
    file.set_len(600).unwrap();
    file.sync().unwrap();
    assert!(seen.insert(world.digest()), "length");
    disk.rename("a", "b", true).unwrap();
    disk.sync_dir(".").unwrap();
    assert!(seen.insert(world.digest()), "name");
    disk.create_dir("d").unwrap();
    disk.sync_dir(".").unwrap();
    assert!(seen.insert(world.digest()), "directory");
    assert!(seen.insert(world.copy_to_new_inodes().digest()), "inodes");
    assert!(!seen.insert(all_old(&world).digest()), "the boot is not part of it");
}

// Random sequences: the simulation does what the operating system does, and a power cut in which
// everything survives changes nothing.

#[derive(Debug, Clone)]
enum Step {
    Write(u8, u64, usize),
    SetLen(u8, u64),
    Create(u8),
    CreateDir(u8),
    Rename(u8, u8, bool),
    Remove(u8),
    Sync(u8),
    SyncDir(u8),
    SyncAll,
}

const NAMES: [&str; 8] = ["a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a"];

fn steps() -> impl Strategy<Value = Step> {
    let name = || 0..8_u8;
    prop_oneof![
        4 => (name(), 0..2_000_u64, 1..1_500_usize).prop_map(|(n, at, len)| Step::Write(n, at, len)),
        2 => (name(), 0..3_000_u64).prop_map(|(n, len)| Step::SetLen(n, len)),
        3 => name().prop_map(Step::Create),
        2 => name().prop_map(Step::CreateDir),
        4 => (name(), name(), any::<bool>()).prop_map(|(a, b, replace)| Step::Rename(a, b, replace)),
        1 => name().prop_map(Step::Remove),
        1 => name().prop_map(Step::Sync),
        1 => name().prop_map(Step::SyncDir),
        1 => Just(Step::SyncAll),
    ]
}

/// What a step answers: the errno in words, or what it returned.
fn take(disk: &dyn Disk, step: &Step, fill: u8) -> Result<bool, Option<i32>> {
    let name = |n: &u8| NAMES[usize::from(*n)];
    let open = |n| disk.open(name(n), Open::Write);
    let done = match step {
        Step::Write(n, at, len) => open(n).and_then(|f| f.write_at(&vec![fill; *len], *at)).map(|()| true),
        Step::SetLen(n, len) => open(n).and_then(|f| f.set_len(*len)).map(|()| true),
        Step::Create(n) => disk.open(name(n), Open::CreateNew).map(|_| true),
        Step::CreateDir(n) => disk.create_dir(name(n)),
        Step::Rename(a, b, replace) => disk.rename(name(a), name(b), *replace),
        Step::Remove(n) => disk.remove(name(n)).map(|()| true),
        Step::Sync(n) => open(n).and_then(|f| f.sync()).map(|()| true),
        Step::SyncDir(n) => disk.sync_dir(name(n)).map(|()| true),
        Step::SyncAll => disk.sync_all().map(|()| true),
    };
    done.map_err(|e| e.os_error())
}

/// Every path with its bytes; `None` of a directory.
fn walk(disk: &dyn Disk, at: &str, found: &mut BTreeMap<String, Option<Vec<u8>>>) {
    let mut entries = Vec::new();
    disk.list(at, &mut |name, kind| entries.push((name.to_owned(), kind))).unwrap();
    for (name, kind) in entries {
        let path = if at == "." { name } else { format!("{at}/{name}") };
        found.insert(path.clone(), (kind == Kind::File).then(|| get(disk, &path)));
        if kind == Kind::Directory {
            walk(disk, &path, found);
        }
    }
}

fn picture(disk: &dyn Disk) -> BTreeMap<String, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    walk(disk, ".", &mut found);
    found
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_simulation_does_as_the_operating_system(steps in prop::collection::vec(steps(), 1..40)) {
        let (_dir, os, _) = os_pair();
        let (world, sim) = start();
        for (fill, step) in (1_u8..).zip(&steps) {
            // Syncing the whole machine's disk for each case would take long and change nothing here.
            if !matches!(step, Step::SyncAll) {
                prop_assert_eq!(take(&sim, step, fill), take(&os, step, fill), "{:?}", step);
            }
        }
        prop_assert_eq!(picture(&sim), picture(&os));
        prop_assert_eq!(picture(&all_new(&world).process(1)), picture(&os));
    }

    #[test]
    fn what_was_synced_survives_whatever_happens_after(
        before in prop::collection::vec(steps(), 1..25),
        after in prop::collection::vec(steps(), 0..8),
        seed: u64,
    ) {
        let (world, disk) = start();
        for (fill, step) in (1_u8..).zip(&before) {
            let _ = take(&disk, step, fill);
        }
        disk.sync_all().unwrap();
        let synced = picture(&disk);
        prop_assert_eq!(&picture(&all_old(&world).process(1)), &synced);
        for (fill, step) in (100_u8..).zip(&after) {
            let _ = take(&disk, step, fill);
        }
        prop_assert_eq!(picture(&all_new(&world).process(1)), picture(&disk));
        for image in Choices::new(&world, 4, 20, seed) {
            let digest = image.digest;
            let image = image.world();
            let disk = image.process(1);
            prop_assert_eq!(image.digest(), digest);
            prop_assert!(image.volatile().is_empty());
            prop_assert_eq!(image.digest(), all_new(&image).digest());
            let left = picture(&disk);
            prop_assert_eq!(&picture(&all_old(&image).process(1)), &left);
            // A second power cut, after work on what the first one has left.
            for (fill, step) in (200_u8..).zip(&after) {
                let _ = take(&disk, step, fill);
            }
            disk.sync_all().unwrap();
            prop_assert_eq!(picture(&all_old(&image).process(1)), picture(&disk));
        }
    }
}
