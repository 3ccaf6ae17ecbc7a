//! The tables, as a list that only ever grows at its end: what was shipped is never changed, a database from then has it.

/// `PRAGMA application_id`: what tells our database from anybody's, "Port" in ASCII.
pub(super) const APPLICATION: i64 = 0x506f_7274;

/// The version that the last of them leads to.
pub(super) const NEWEST: i64 = 2;

/// Each brings the tables from its index to the next; `PRAGMA user_version` counts those that are done.
pub(super) const MIGRATIONS: [&str; 2] = ["
    CREATE TABLE meta (
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;

    -- One row for each model that is registered here, and for each declared one that ever had a state.
    CREATE TABLE models (
        name TEXT PRIMARY KEY,
        spec TEXT,
        state TEXT NOT NULL DEFAULT 'stopped',
        since_ms INTEGER NOT NULL,
        why TEXT NOT NULL DEFAULT ''
    ) STRICT, WITHOUT ROWID;

    -- What was started, so that it is known again.
    CREATE TABLE receipts (
        model TEXT PRIMARY KEY REFERENCES models (name) ON DELETE CASCADE,
        boot_id TEXT NOT NULL,
        pid INTEGER,
        start_ticks INTEGER,
        pidfd_inode INTEGER,
        exe TEXT,
        uid INTEGER,
        engine TEXT,
        container_id TEXT,
        container_name TEXT,
        unit TEXT,
        instance_id TEXT NOT NULL,
        at_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    -- What happened, also to models that are registered no more.
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        at_ms INTEGER NOT NULL,
        model TEXT NOT NULL,
        kind TEXT NOT NULL,
        detail TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_of_model ON events (model, id);

    INSERT INTO meta VALUES ('instance_id', lower(hex(randomblob(16))));
", "
    -- Who is leading a model from one state to the next: whether they still live tells a start under way from one that died.
    ALTER TABLE models ADD COLUMN worker TEXT;
"];
