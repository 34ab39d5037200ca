-- What happens to one request: whose it is, what its tenant may do, what it asks for, and what it cost.
local adapters = require "qwen.adapters"
local answers = require "qwen.answers"
local body = require "qwen.body"
local client = require "qwen.client"
local demand = require "qwen.demand"
local early = require "qwen.early"
local hold = require "qwen.hold"
local limits = require "qwen.limits"
local metrics = require "qwen.metrics"
local models = require "qwen.models"
local state = require "qwen.state"
local usage = require "qwen.usage"

local requests = {}

local ANONYMOUS = "anonymous"
-- Slots that other pods have freed may count here for this long. A waiting request looks again this often.
local LATE_SECONDS = 2.5
local LOOK_SECONDS = 0.1

-- nginx forgets ngx.ctx when it answers an error page, but no variable. So the variable qwen_ticket has the number of
-- the request, and this table what belongs to it.
local tickets = {}
local last = 0

local function open_ticket(tenant)
    last = last + 1
    local ticket = { tenant = tenant, model = "", name = "", room = 0, slot = false, turn = false, started = ngx.now() }
    tickets[last] = ticket
    ngx.var.qwen_ticket = last
    return ticket
end

local function refuse(ticket, reason, ...)
    metrics.refused(ticket and ticket.tenant or "", reason)
    return answers.refuse(...)
end

local function credential()
    local header = ngx.var.http_authorization
    local key = header and header:match("^[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]+)$")
    return key or ngx.var.http_x_api_key
end

-- The request's ticket, or the request ends here.
local function authenticate()
    local settings = state.settings
    if not settings.ready then
        return refuse(nil, "settings", 503, "The gateway has no valid settings yet; its log has the reason.")
    end
    if not settings.auth then
        return open_ticket(ANONYMOUS)
    end
    local key = credential()
    if not key then
        return refuse(nil, "key", 401, "No API key: send the header Authorization with Bearer and your key.")
    end
    local tenant = state.tenant_of(key)
    if not tenant then
        return refuse(nil, "key", 401, "Incorrect API key provided.")
    end
    return open_ticket(tenant)
end

local function too_many(ticket, limit, seconds, words)
    local message = string.format("Rate limit of tenant %s reached: %s. Try again in %d s.", ticket.tenant, words, seconds)
    return refuse(ticket, limit, 429, message, { retry_after = seconds })
end

local function take_rates(ticket, allowed)
    local seconds = limits.has_tokens(ticket.tenant, allowed.tokensPerMinute)
    if seconds then
        return too_many(ticket, "tokensPerMinute", seconds, allowed.tokensPerMinute .. " tokens a minute")
    end
    seconds = limits.take_request(ticket.tenant, allowed.requestsPerMinute)
    if seconds then
        return too_many(ticket, "requestsPerMinute", seconds, allowed.requestsPerMinute .. " requests a minute")
    end
end

local function stop_waiting(ticket)
    if ticket.waits then
        ticket.waits = nil
        limits.end_wait(ticket.tenant)
    end
end

local function take_slot(ticket, allowed)
    local most, deadline = allowed.concurrentRequests, ngx.now() + LATE_SECONDS
    while not limits.take_slot(ticket.tenant, most) do
        ticket.waits = ticket.waits or limits.begin_wait(ticket.tenant, most)
        if not ticket.waits or ngx.now() > deadline then
            stop_waiting(ticket)
            return too_many(ticket, "concurrentRequests", 1, most .. " requests at once")
        end
        ngx.sleep(LOOK_SECONDS)
    end
    stop_waiting(ticket)
    ticket.slot = true
end

-- Room for a body that does not stay in memory. One of unknown length needs the most that is allowed.
local function take_room(ticket, length, allowed)
    local bytes = length or allowed.bodyBytes
    if bytes <= limits.SMALL_BYTES then
        return
    end
    local granted, whose = limits.take_room(ticket.tenant, bytes, state.settings.bufferedBytes)
    if granted then
        ticket.room = ticket.room + bytes
    elseif whose == "tenant" then
        too_many(ticket, "bufferedBytes", 1, "large request bodies at once")
    else
        local options = { retry_after = 1 }
        refuse(ticket, "bufferedBytes", 503, "The gateway holds too many large request bodies. Try again.", options)
    end
end

local function check_headers(ticket)
    local kind = (ngx.var.http_content_type or ""):lower()
    if not kind:find("^application/json%s*$") and not kind:find("^application/json%s*;") then
        return refuse(ticket, "format", 415, "The header Content-Type must be application/json.")
    end
    local encoding = ngx.var.http_content_encoding
    if encoding and encoding:lower() ~= "identity" then
        return refuse(ticket, "format", 415, "The request body must not be compressed (Content-Encoding).")
    end
end

local function check_length(ticket, length, allowed)
    if length and length > allowed.bodyBytes then
        metrics.refused(ticket.tenant, "bodyBytes")
        return answers.too_large(length, allowed.bodyBytes)
    end
end

-- Reads the whole body within the time limit.
local function read_body(ticket)
    local seconds = state.settings.bodyTimeoutSeconds
    local watch = ngx.thread.spawn(function()
        ngx.sleep(seconds)
        local message = string.format("The request body did not arrive within %d seconds.", seconds)
        return refuse(ticket, "bodyTimeout", 408, message)
    end)
    ngx.req.read_body()
    ngx.thread.kill(watch)
    if client.has_gone() then
        ngx.exit(499)
    end
end

local function end_turn(ticket)
    if ticket.turn then
        ticket.turn = false
        limits.end_turn(ticket.tenant)
    end
end

-- Lets other requests run while a body is searched that takes long.
local function pause_of(ticket)
    return function()
        ticket.turn = ticket.turn or limits.take_turn(ticket.tenant, state.settings.bodyTimeoutSeconds)
        if not ticket.turn then
            too_many(ticket, "complexBodies", 1, "bodies with very many strings and brackets at once")
        end
        -- After a sleep of 0, nginx would go on with this request before it looks at any connection.
        ngx.sleep(0.001)
    end
end

-- An engine gets the name of its model, by which the router chooses it, and the adapter in a field of its own.
local function use_adapter(ticket, adapter, place, allowed)
    if not adapters.ROUTES[ngx.var.uri] then
        local message = "Adapters of a model answer at %s only."
        return refuse(ticket, "format", 400, string.format(message, adapters.WHERE), { param = "model" })
    end
    ticket.adapter = adapter
    -- Until the request ends, the disk has both bodies.
    take_room(ticket, body.bytes(), allowed)
    body.replace(place, adapters.fields(ticket), limits.SMALL_BYTES, pause_of(ticket))
    end_turn(ticket)
end

local function find_model(ticket, allowed)
    check_length(ticket, body.bytes(), allowed)
    local name, fault, stream, place = body.model(pause_of(ticket))
    end_turn(ticket)
    if not name then
        return refuse(ticket, "format", 400, "The request body is refused: " .. fault .. ".", { param = "model" })
    end
    local model, adapter = adapters.split(name)
    -- What the tenant may not ask for is not even looked up, so that the time tells nothing about it.
    if not models.allowed(ticket.tenant, name) or not state.serves(model, adapter) then
        metrics.refused(ticket.tenant, "model")
        return answers.no_model(name)
    end
    if place.adapts and state.adapters[model] then
        local message = "The field lora_path is not accepted: ask for the model '%s:ADAPTER' instead."
        return refuse(ticket, "format", 400, string.format(message, model), { param = "lora_path" })
    end
    ticket.model, ticket.name, ticket.stream = model, name, stream
    ngx.var.qwen_tenant = ticket.tenant
    demand.come(model)
    if adapter then
        use_adapter(ticket, adapter, place, allowed)
    end
end

local function only(method)
    if ngx.req.get_method() == method then
        return
    end
    answers.wrong_method(method)
end

-- If the head of the answer is sent already, the request ends here.
local function answer_early(ticket)
    while ticket.head do
        hold.again(ticket, early.answer(ticket) == "@cut")
    end
end

-- For the addresses of the router that want a model in the body.
function requests.admit()
    requests.preflight("POST")
    only("POST")
    local ticket = authenticate()
    local allowed = state.limits_of(ticket.tenant)
    check_headers(ticket)
    local length = tonumber(ngx.var.http_content_length)
    check_length(ticket, length, allowed)
    take_slot(ticket, allowed)
    take_rates(ticket, allowed)
    take_room(ticket, length, allowed)
    read_body(ticket)
    find_model(ticket, allowed)
    ticket.length = tonumber(ngx.var.request_length) or 0
    hold.wait(ticket)
    answer_early(ticket)
end

-- For a request that the router gave back. `cut`: an engine may have begun with it.
function requests.again(cut)
    local ticket = tickets[tonumber(ngx.var.qwen_ticket)]
    hold.again(ticket, cut)
    answer_early(ticket)
end

-- For GET /v1/models and GET /v1/models/NAME.
function requests.models(name)
    requests.preflight("GET")
    only("GET")
    local ticket = authenticate()
    local allowed = state.limits_of(ticket.tenant)
    take_slot(ticket, allowed)
    take_rates(ticket, allowed)
    if name then
        return models.answer_one(ticket.tenant, name)
    end
    return models.answer_list(ticket.tenant)
end

-- For the gateway's own health.
function requests.health()
    if ngx.req.get_method() ~= "HEAD" then
        only("GET")
    end
end

local function allowed_origin()
    local origin = ngx.var.http_origin
    if not origin then
        return nil
    end
    for _, one in ipairs(state.settings.corsOrigins or {}) do
        if one == "*" or one == origin then
            return one
        end
    end
    return nil
end

-- A browser asks first, without a key, whether it may send the request.
function requests.preflight(method)
    if ngx.req.get_method() ~= "OPTIONS" then
        return
    end
    if not allowed_origin() then
        answers.wrong_method(method)
    end
    ngx.header["Access-Control-Allow-Methods"] = method
    ngx.header["Access-Control-Allow-Headers"] = ngx.var.http_access_control_request_headers or "authorization, content-type"
    ngx.header["Access-Control-Max-Age"] = 600
    return ngx.exit(ngx.HTTP_NO_CONTENT)
end

-- Of an answer of the router, only these headers reach the client. The router passes on whatever an engine sends: a
-- compromised one could otherwise send a browser elsewhere, or make a proxy in front of this one work for it.
local ANSWER_HEADERS = {
    ["connection"] = true,
    ["content-length"] = true,
    ["content-type"] = true,
    ["retry-after"] = true,
    ["transfer-encoding"] = true,
    ["x-request-id"] = true,
}

local function drop_headers()
    for name in pairs(ngx.resp.get_headers(0, true)) do
        if not ANSWER_HEADERS[name:lower()] then
            ngx.header[name] = nil
        end
    end
end

-- In the phase header_filter, for every answer.
function requests.head()
    if ngx.is_subrequest then
        return
    end
    if ngx.var.upstream_status and not ngx.ctx.own_answer then
        drop_headers()
    end
    local origin = allowed_origin()
    if origin then
        ngx.header["Access-Control-Allow-Origin"] = origin
        ngx.header["Access-Control-Expose-Headers"] = "x-request-id, retry-after"
        ngx.header["Vary"] = "Origin"
    end
    local ticket = tickets[tonumber(ngx.var.qwen_ticket)]
    -- If the head is sent early, the answer begins later.
    if ticket and ticket.length and not ticket.head and ngx.status == 200 then
        usage.begin(ticket, ngx.header["Content-Type"])
        if ticket.answer.stream or ticket.answer.rename then
            -- Its end may be left out, or the name in it is another one.
            ngx.header["Content-Length"] = nil
        end
    end
end

local FAILED = '\ndata: {"error":'

-- If an engine ends in the middle of a stream, smg sends an error and then the sign of a complete answer. A client that
-- does not know such errors would take the answer for complete. So nothing follows the first error. A line break inside
-- of an event would be escaped. The bytes that matter may be in two pieces: `answer.before` has the end of the last one.
local function without_false_end(answer, text)
    if answer.ended then
        return ""
    end
    local before = answer.before or "\n"
    local all = before .. text
    answer.before = all:sub(1 - #FAILED)
    local start = answer.failed and 1 or all:find(FAILED, 1, true)
    if not start then
        return text
    end
    answer.failed = true
    local _, stop = all:find("\n\n", start + 1, true)
    answer.ended = stop ~= nil
    return stop and text:sub(1, stop - #before) or text
end

-- In the phase body_filter, for every piece of an answer.
function requests.piece()
    local answer = ngx.ctx.answer
    if answer and ngx.arg[1] ~= "" then
        if answer.stream then
            ngx.arg[1] = without_false_end(answer, ngx.arg[1])
        end
        usage.add(answer, ngx.arg[1])
    end
    if answer and answer.rename then
        ngx.arg[1] = adapters.renamed(answer, ngx.arg[1], ngx.arg[2])
    end
end

local function count_tokens(ticket)
    local tokens = usage.tokens(ticket.answer)
    metrics.tokens(ticket.tenant, ticket.name, tokens)
    local spent = tokens and (tokens.into or 0) + (tokens.out or 0)
    -- An answer that does not tell costs its events and a token for four bytes of the request.
    spent = spent or ticket.answer.events + math.floor(ticket.length / 4)
    limits.spend_tokens(ticket.tenant, state.limits_of(ticket.tenant).tokensPerMinute, spent)
end

-- In the phase log, once for every request.
function requests.finish()
    local number = tonumber(ngx.var.qwen_ticket)
    local ticket = tickets[number]
    if not ticket then
        metrics.ended("", "", ngx.status)
        return
    end
    tickets[number] = nil
    body.close()
    end_turn(ticket)
    hold.release(ticket)
    stop_waiting(ticket)
    if ticket.slot then
        limits.free_slot(ticket.tenant)
        metrics.held(ticket.tenant, ticket.name, ngx.now() - ticket.started)
    end
    if ticket.room > 0 then
        limits.free_room(ticket.tenant, ticket.room)
    end
    if ticket.answer then
        count_tokens(ticket)
    end
    metrics.ended(ticket.tenant, ticket.name, ngx.ctx.failed or ngx.status)
end

return requests
