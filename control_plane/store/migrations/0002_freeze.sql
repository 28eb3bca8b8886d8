-- While set, no offer goes to any host of the project.
alter table project add column frozen_at integer;
