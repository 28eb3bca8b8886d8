// The vendor's own client against a server: ROOT URL KEY STEP [JSON]; prints what it answers as JSON.
const [root, url, key, step, given] = process.argv.slice(2);
const { PostHogAgentToolkit } = await import(`${root}/node_modules/@posthog/agent-toolkit/dist/index.mjs`);
const { api } = new PostHogAgentToolkit({ posthogApiToken: key, posthogApiBaseUrl: url }).getContext();
const experiments = api.experiments({ projectId: "17" });
const answer = await experiments[step](given ? JSON.parse(given) : undefined);
console.log(JSON.stringify({ ...answer, error: answer.error ? String(answer.error.message) : null }));
