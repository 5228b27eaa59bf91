-- The decision in four words. `decision` keeps its three words, and so the digests
-- of old rows hold.
alter table experiment add column outcome text
    check (outcome in ('keep', 'discard', 'unresolved', 'failed'));
update experiment set outcome =
    case when decision = 'discard' and why like 'unresolved%' then 'unresolved'
         else decision end;
