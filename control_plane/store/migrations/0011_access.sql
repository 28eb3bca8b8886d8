-- A key may be limited to labels: what it reads, lists and changes carries them. The audit log names the key that
-- was used; null where there was none, as for what timers do.
alter table api_key add column labels text not null default '{}';
alter table audit add column api_key_id blob;
create index audit_of_project on audit (project_id, id);
