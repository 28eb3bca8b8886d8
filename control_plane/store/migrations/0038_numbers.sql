-- Integers for those who name things so; unique within a project, and never used again.
alter table holdout add column number integer not null default 0;
update holdout set number = (select p.last_number from project p where p.id = holdout.project_id)
  + (select count(*) from holdout o where o.project_id = holdout.project_id and o.id <= holdout.id);
update project set last_number = last_number + (select count(*) from holdout o where o.project_id = project.id);
alter table metric add column number integer not null default 0;
update metric set number = (select p.last_number from project p where p.id = metric.project_id)
  + (select count(*) from metric o where o.project_id = metric.project_id and o.id <= metric.id);
update project set last_number = last_number + (select count(*) from metric o where o.project_id = project.id);
