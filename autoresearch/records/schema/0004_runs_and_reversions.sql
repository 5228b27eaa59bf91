-- Runs added to decided experiments, the sealed holdout, curves, runs ended early,
-- and reverted champions. SQLite cannot loosen a check, hence the copy.
create table experiment_now (
    number      integer primary key,
    title       text not null,
    reason      text not null,
    author      text not null,
    parent      text not null,
    blob        text not null references source(blob),
    code        text not null,
    program     text not null,
    proposed_at real not null,
    evidence    text not null default 'measured'
                check (evidence in ('measured', 'claimed')),
    sequence    integer unique,
    session     integer references session(id),
    series      text references series(hash),
    decision    text check (decision in ('keep', 'discard', 'failed')),
    why         text,
    kind        text,
    value       real,
    delta       real,
    against     integer,
    decided_at  real,
    log         text,
    commit_name text,
    in_git      integer not null default 0,
    ended_at_share real check (ended_at_share between 0 and 1),
    check ((decision is null) = (sequence is null)),
    check ((decision is null) = (decided_at is null)),
    check ((kind is null) =
           (decision is not 'failed' and ended_at_share is null)),
    check ((value is null) =
           (decision is null or decision = 'failed' or kind is not null)),
    check (ended_at_share is null or decision = 'discard'),
    check (delta is null or value is not null)
) strict;
insert into experiment_now select *, null from experiment;
drop table experiment;
alter table experiment_now rename to experiment;
create index experiment_code on experiment(code, parent);
create index experiment_blob on experiment(blob);
create index experiment_undecided on experiment(number) where sequence is null;
create index experiment_not_in_git on experiment(number) where in_git = 0;
create index experiment_decision on experiment(decision, series, sequence);
alter table run add column ended_at real;
alter table run add column occasion text not null default 'verdict'
    check (occasion in ('verdict', 'champion', 'replicate'));
alter table run add column holdout real;
alter table run add column curve text check (curve is null or json_valid(curve));
alter table run add column schedule integer not null default 0;
alter table run add column spared text check (spared is null or json_valid(spared));
create table taken_back (
    experiment  integer primary key references experiment(number),
    instead     integer not null references experiment(number),
    series      text not null references series(hash),
    why         text not null,
    at          real not null,
    commit_name text not null,
    in_git      integer not null default 0
) strict;
create table start (
    series text primary key references series(hash),
    blob   text not null references source(blob)
) strict;
