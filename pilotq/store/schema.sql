-- The durable queue. One writer (the master's store thread); readers (query, scribe) open it read-only.
-- crc columns hold zlib.crc32 over the values before them, packed with msgpack in column order (`store.checksum`).

-- queue: its id; epoch: starts of a master; cluster: ids given before a restore; "drain NAME": a worker that is to leave.
create table if not exists meta (
    name text primary key,
    value text not null
) without rowid;

-- Written once at submit; `live` alone changes.
create table if not exists cluster (
    cluster integer primary key,
    owner text not null,
    key text not null,
    count integer not null,
    priority integer not null,
    submitted_at real not null,
    -- state of procs that have neither a row in task nor in history
    state integer not null,
    -- last block of the history when it was submitted: its own are all later
    since integer not null,
    body blob not null,
    crc integer not null,
    live integer not null,
    -- last, so that what reads the columns above does not read it
    description blob not null,
    description_crc integer not null
);
create unique index if not exists cluster_key on cluster (owner, key) where key <> '';
create index if not exists cluster_live on cluster (cluster) where live = 1;

-- What differs between procs, in blocks of 1000 (deltas.py).
create table if not exists delta (
    cluster integer not null,
    first integer not null,
    deltas blob not null,
    crc integer not null,
    primary key (cluster, first)
) without rowid;

-- Attributes that somebody changed in the ads of tasks, in order; a later one goes before an earlier one.
create table if not exists edit (
    n integer primary key,
    cluster integer not null,
    first integer not null,
    last integer not null,
    -- of the attribute as written; its expression
    name text not null,
    value text not null,
    -- last block of the history before it: tasks that had left are not meant
    since integer not null,
    -- not over n
    crc integer not null
);
create index if not exists edit_cluster on edit (cluster, n);

-- Kept files a live cluster needs.
create table if not exists file (
    cluster integer not null,
    digest text not null,
    primary key (cluster, digest)
) without rowid;
create index if not exists file_digest on file (digest);

-- Tasks that were assigned, held or edited and are still in the queue, in blocks (store/blocks.py). For a task that is
-- in several the block with the highest n counts, and none for a task that is in the history.
create table if not exists task (
    n integer not null,
    cluster integer not null,
    -- lowest and highest proc, in one span of 4096
    first integer not null,
    last integer not null,
    count integer not null,
    -- 32 bits each; empty: all from first to last
    procs blob not null,
    state integer not null,
    crc integer not null,
    -- of how many of its tasks it is the block that counts; alone changes
    alive integer not null,
    -- attempts and facts; last, so that what reads the columns above does not read it
    body blob not null,
    body_crc integer not null,
    -- where the span begins
    span integer not null,
    primary key (cluster, span, n)
) without rowid;

-- Tasks that left the queue, in blocks, in the order they left; each is in one block.
create table if not exists history (
    n integer primary key,
    cluster integer not null,
    first integer not null,
    last integer not null,
    count integer not null,
    procs blob not null,
    state integer not null,
    -- how many of them are done with another outcome than OK
    failed integer not null,
    -- when they left
    at real not null,
    crc integer not null,
    body blob not null,
    body_crc integer not null
);
create index if not exists history_cluster on history (cluster, first, last, count);

-- Notes the scribe has not written yet, in blocks of those of a cluster that came in one commit (store/outbox.py).
create table if not exists outbox (
    -- of its first note
    n integer primary key,
    cluster integer not null,
    -- of each note what it is for
    heads blob not null,
    crc integer not null,
    -- of each note its moment, facts and outputs
    body blob not null,
    body_crc integer not null
);

-- Notes that are written, of blocks of which others are not.
create table if not exists outbox_done (
    block integer not null,
    n integer not null,
    crc integer not null,
    primary key (block, n)
) without rowid;
