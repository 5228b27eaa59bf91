-- One more kind in the chain: reversions. SQLite cannot loosen a check, hence the
-- copy.
create table chain_now (
    position integer primary key,
    kind     text not null
             check (kind in ('run', 'verdict', 'commit', 'taken back')),
    ref      integer not null,
    digest   text not null,
    link     text not null unique,
    adopted  integer not null default 0
) strict;
insert into chain_now select * from chain;
drop table chain;
alter table chain_now rename to chain;
create index chain_row on chain(kind, ref);
