-- The host is done with what a slot was closed or restored by: what its sessions look at is not read of it again.
alter table slot add column settled integer not null default 0;
update slot set settled = 1 where exists (select 1 from deployment d where d.id = slot.deployment_id
  and d.action <> 'write' and d.state in ('applied', 'confirmed'));
