//! Opening, closing, and the disk that fails.

use super::*;

#[test]
fn a_full_disk_is_typed_loses_nothing_and_passes() {
    let dir = tempfile::tempdir().expect("a directory");
    let full = OpenOptions { max_page_count: Some(60), ..options() };
    let (mut writer, readers) = Store::open(dir.path(), &full).expect("opens");
    let mut script = Script::new();
    script.start();
    script.commit(&mut writer);
    let refused = loop {
        script.events(200);
        let batch = script.batch();
        match writer.commit(std::slice::from_ref(&batch)) {
            Ok(_) => {}
            Err(error) => {
                assert!(matches!(error, CommitError::Retry { code: "FULL", .. }), "{error}");
                break batch;
            }
        }
    };
    let before = all(&readers, script.session, Position::START);
    assert!(!before.is_empty(), "reading goes on");
    writer.commit(std::slice::from_ref(&refused)).expect_err("still full");
    assert!(writer.drop_ballast(), "there was one");
    assert!(!writer.drop_ballast(), "once");
    writer.commit(std::slice::from_ref(&refused)).expect("the ballast made room");
    let after = all(&readers, script.session, Position::START);
    assert_eq!(after[..before.len()], before[..], "nothing that was visible changed");
    assert_eq!(after.len(), before.len() + 200);

    let refused = loop {
        script.events(200);
        let batch = script.batch();
        if writer.commit(std::slice::from_ref(&batch)).is_err() {
            break batch;
        }
    };
    writer.set_max_page_count(100_000).expect("room");
    writer.commit(&[refused]).expect("the same batch again");
    script.complete();
    script.commit(&mut writer);
    writer.retain(T0, Keep::default(), 10, &mut || T0).expect("retains");
    assert!(dir.path().join(reattach::store::BALLAST).exists(), "the ballast is back");
    sound(dir.path());
}

#[test]
fn a_full_disk_at_start_takes_the_ballast() {
    let dir = tempfile::tempdir().expect("a directory");
    let none = OpenOptions { max_page_count: Some(1), ballast_bytes: 0, ..options() };
    let error = Store::open(dir.path(), &none).expect_err("no room for the schema");
    assert!(matches!(error, OpenError::Sqlite { code: "FULL", .. }), "{error}");
    open(dir.path()).0.close().expect("closes");
}

#[test]
fn a_lock_that_a_dead_process_left_to_its_child_is_waited_for() {
    let dir = tempfile::tempdir().expect("a directory");
    open(dir.path()).0.close().expect("closes");
    let mut child = std::process::Command::new("true").spawn().expect("it runs");
    child.wait().expect("our child");
    let path = dir.path().join(reattach::store::LOCK);
    fs::write(&path, child.id().to_string()).expect("ours");
    let left = fs::File::open(&path).expect("ours");
    left.lock().expect("nobody has it");
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| Store::open(dir.path(), &options()).map(drop));
        crate::support::let_time_pass(std::time::Duration::from_millis(50));
        drop(left);
        opened.join().expect("no panic").expect("its owner is dead");
    });
}

#[test]
fn a_second_opening_names_the_process_that_has_it() {
    let (dir, writer, _readers) = fresh();
    let error = Store::open(dir.path(), &options()).expect_err("it is open");
    assert!(
        matches!(error, OpenError::AlreadyRunning { pid: Some(pid), .. } if pid == std::process::id()),
        "{error}"
    );
    let expected = format!("already running, pid {}", std::process::id());
    assert!(error.to_string().contains(&expected), "{error}");
    let pid = fs::read_to_string(dir.path().join(LOCK)).expect("readable");
    assert_eq!(pid.trim(), std::process::id().to_string());
    drop(writer);
    open(dir.path());
}

#[test]
fn files_are_ours_alone() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = parent.path().join("a/b");
    let (mut writer, _readers) = open(&dir);
    Script::new().start().commit(&mut writer);
    let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&parent.path().join("a"))), (0o700, 0o700));
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(&dir).expect("readable") {
        let entry = entry.expect("readable");
        assert_eq!(mode(&entry.path()), 0o600, "{:?}", entry.file_name());
        names.push(entry.file_name().into_string().expect("UTF-8"));
    }
    names.sort();
    assert_eq!(
        names,
        ["ballast", "reattach.db", "reattach.db-shm", "reattach.db-wal", "reattach.lock"]
    );
    let conn = Connection::open(dir.join(DATABASE)).expect("opens");
    let pragma = |name: &str| -> i64 {
        conn.pragma_query_value(None, name, |row| row.get(0)).expect("a number")
    };
    assert_eq!((pragma("page_size"), pragma("auto_vacuum")), (8192, 2));
    let journal: String =
        conn.pragma_query_value(None, "journal_mode", |row| row.get(0)).expect("a word");
    assert_eq!(journal, "wal");
}

#[test]
fn a_data_directory_that_cannot_be_one_is_refused_with_its_path() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    fs::write(&file, "x").expect("writable");
    for path in [file.clone(), file.join("below")] {
        let error = Store::open(&path, &options()).expect_err("a file is in its place");
        assert!(matches!(error, OpenError::DataDir { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&*path.to_string_lossy()) && text.contains("--data-dir"), "{text}");
    }
    for name in [LOCK, DATABASE] {
        let place = tempfile::tempdir().expect("a directory");
        fs::create_dir(place.path().join(name)).expect("makes");
        let error = Store::open(place.path(), &options()).expect_err("a directory is in its place");
        assert!(matches!(&error, OpenError::File { path, .. } if path.ends_with(name)), "{error}");
    }
    assert_eq!(fs::read_to_string(&file).expect("readable"), "x");
}

/// A closed store with one run in it.
fn stored() -> TempDir {
    let (dir, mut writer, readers) = fresh();
    Script::new().start().events(500).complete().commit(&mut writer);
    drop(readers);
    writer.close().expect("closes");
    dir
}

#[test]
fn a_damaged_database_is_refused_and_left_as_it_is() {
    let dir = stored();
    let path = dir.path().join(DATABASE);
    let good = fs::read(&path).expect("readable");

    // No database at all.
    let mut bad = good.clone();
    bad[..64].fill(b'x');
    fs::write(&path, &bad).expect("writable");
    let error = Store::open(dir.path(), &options()).expect_err("no header");
    assert!(matches!(error, OpenError::Damaged { code: "NOTADB", .. }), "{error}");
    assert!(error.to_string().contains("left in place"), "{error}");
    assert_eq!(fs::read(&path).expect("readable"), bad, "not touched");

    // Damage inside: found at the next start after a stop that was not orderly.
    fs::write(&path, &good).expect("writable");
    drop(open(dir.path()));
    let mut bad = fs::read(&path).expect("readable");
    let pages = bad.len() / 8192;
    for page in 2..pages {
        bad[page * 8192..page * 8192 + 16].fill(0xff);
    }
    fs::write(&path, &bad).expect("writable");
    let error = Store::open(dir.path(), &options()).expect_err("damaged pages");
    assert!(matches!(error, OpenError::Damaged { code: "CORRUPT", .. }), "{error}");

    fs::write(&path, &good).expect("writable");
    open(dir.path());
    sound(dir.path());
}

#[test]
fn a_database_of_a_newer_version_or_of_another_program_is_refused() {
    let dir = stored();
    let path = dir.path().join(DATABASE);
    let set = |pragma: &str, value: i64| {
        let conn = Connection::open(&path).expect("opens");
        conn.pragma_update(None, pragma, value).expect("sets");
    };
    set("user_version", 99);
    let error = Store::open(dir.path(), &options()).expect_err("from the future");
    assert!(matches!(error, OpenError::Newer { found: 99, known: 3, .. }), "{error}");
    set("user_version", 3);
    set("application_id", 5);
    let error = Store::open(dir.path(), &options()).expect_err("another program's");
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
}

#[test]
fn an_orderly_close_leaves_one_file_and_a_mark() {
    let dir = stored();
    let clean = || -> bool {
        let conn = Connection::open(dir.path().join(DATABASE)).expect("opens");
        conn.query_row("SELECT v FROM meta WHERE k = 'clean'", [], |row| row.get(0)).expect("a row")
    };
    assert!(clean());
    assert!(!dir.path().join("reattach.db-wal").exists(), "folded in");
    let (writer, readers) = open(dir.path());
    assert!(!clean());
    drop((writer, readers));
    assert!(!clean(), "dropped, not closed");
}
