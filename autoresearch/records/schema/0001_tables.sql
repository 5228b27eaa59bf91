-- The tables of the first format.
create table session (
    id         integer primary key,
    started_at real not null,
    tool       text not null,
    options    text not null check (json_valid(options))
) strict;
create table series (
    hash  text primary key,
    facts text not null check (json_valid(facts)),
    seed  integer not null
) strict;
create table source (
    blob text primary key,
    text blob not null
) strict;
create table experiment (
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
    kind        text check ((kind is null) = (decision is not 'failed')),
    value       real,
    delta       real,
    against     integer,
    decided_at  real,
    log         text,
    commit_name text,
    in_git      integer not null default 0,
    check ((decision is null) = (sequence is null)),
    check ((decision is null) = (decided_at is null)),
    check (case decision when 'keep' then value is not null
                         when 'discard' then value is not null
                         else value is null end),
    check (delta is null or value is not null)
) strict;
create table run (
    id                 integer primary key,
    experiment         integer not null references experiment(number),
    series             text not null references series(hash),
    seed               integer not null,
    value              real not null,
    error              real not null,
    seconds            real not null,
    startup_seconds    real not null,
    evaluation_seconds real not null,
    memory_gb          real not null,
    facts              text not null check (json_valid(facts)),
    log                text not null
) strict;
create index experiment_code on experiment(code, parent);
create index experiment_blob on experiment(blob);
create index experiment_undecided on experiment(number) where sequence is null;
create index experiment_not_in_git on experiment(number) where in_git = 0;
create index experiment_decision on experiment(decision, series, sequence);
create index run_experiment on run(experiment);
