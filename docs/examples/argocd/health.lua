-- The health of a QwenDeployment in Argo CD.
-- Degraded: somebody must change something. Progressing: it goes on by itself, for example when GPUs are free.
-- Healthy also during scaling and sleep, which are no changes of the spec, and if spec.replicas is 0.
local health = {status = "Progressing", message = "the operator has not seen this change yet"}
if obj.spec ~= nil and obj.spec.suspend == true then
  return {status = "Suspended", message = "spec.suspend is true"}
end
local status = obj.status
if status == nil or status.observedGeneration ~= obj.metadata.generation then
  return health
end
if status.summary ~= nil and status.summary.message ~= nil then
  health.message = status.summary.message
end
local is, why = {}, {}
for _, condition in ipairs(status.conditions or {}) do
  is[condition.type], why[condition.type] = condition.status == "True", condition.reason
end
if is.Stalled then
  health.status = "Degraded"
elseif (is.Ready or why.Ready == "Scaled") and not is.Reconciling then
  health.status = "Healthy"
end
return health
