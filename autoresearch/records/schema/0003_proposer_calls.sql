-- Calls to proposers, answered or not. NULL dollars or tokens: not known, never 0.
-- An answer that became an experiment has its parent and its blob.
create table asking (
    id         integer primary key,
    author     text not null,
    asked_at   real not null,
    seconds    real not null,
    dollars    real check (dollars >= 0),
    tokens_in  integer,
    tokens_out integer,
    outcome    text not null,
    parent     text not null,
    blob       text not null,
    transcript text not null
) strict;
create index asking_blob on asking(blob, parent);
