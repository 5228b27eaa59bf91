-- Hashes over the rows. What was written before is chained once, after this
-- migration (`hash_chain.chain_existing_rows`).
create table chain (
    position integer primary key,
    kind     text not null check (kind in ('run', 'verdict', 'commit')),
    ref      integer not null,
    digest   text not null,
    link     text not null unique,
    adopted  integer not null default 0
) strict;
create index chain_row on chain(kind, ref);
