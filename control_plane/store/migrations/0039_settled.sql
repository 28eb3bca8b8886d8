-- The revision with which the host is done, where that closed or restored the slot: looks do not read it while it is the
-- newest. A server of an earlier version that makes another one does not know of it, and need not.
alter table slot add column settled_revision integer not null default 0;
update slot set settled_revision = revision where exists (select 1 from deployment d where d.id = slot.deployment_id
  and d.action <> 'write' and d.state in ('applied', 'confirmed'));
