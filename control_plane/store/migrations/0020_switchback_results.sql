-- Not to say when alpha is spent means 14 days, or all of a switchback; until now only the number was kept.
-- As text, because engines differ in JSON; a design is always written in this form, and more follows in its analysis.
update experiment set design = replace(design, '"horizonDays":14,', '') where design like '%"horizonDays":14,%';
-- The plan of a switchback has its blocks in it; what was taken of one without them says nothing of changes.
update experiment set analysis_fingerprint = null where type = 'switchback';
