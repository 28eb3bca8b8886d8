-- A host that is gone for good. Its participants are bound to nobody until another agent declares them, and
-- what their slots should have held is asked of nobody any more.
alter table agent add column retired_at integer;
alter table participant add column retired_at integer;
alter table slot add column withdrawn_at integer;
