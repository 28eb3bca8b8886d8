-- What the control plane itself found wrong with an agent, as JSON conditions; `conditions` are the host's own.
alter table agent add column findings text not null default '[]';
-- Which process of the agent holds the session: its spool's epoch, new at every start.
alter table agent add column instance blob;
-- Recent sessions that one process took from another that was alive, as JSON.
alter table agent add column turns text not null default '[]';
-- Since when two processes that pass for this agent are both kept out.
alter table agent add column quarantined_at integer;
-- The incarnation in which a host knew more than this database: it gets no offers for as long as that lasts.
alter table agent add column diverged_in blob;
-- The authority that issued the agent's newest certificate, SHA-256 of its certificate; null: not noted yet.
alter table agent add column certificate_authority blob;
-- The incarnation whose restored row asks a host to withdraw what it took up later than that row.
alter table slot add column overtaken_in blob;
-- Since when that is held back.
alter table slot add column halted_at integer;
