-- The proxy's own answers, in the shape that OpenAI's clients read, and under /v1/messages in Anthropic's.
local cjson = require "cjson.safe"

local answers = {}

local ANTHROPIC = "/v1/messages"

-- Status -> type and code of OpenAI, type of Anthropic, sentence for a refusal by nginx itself.
local KINDS = {
    [400] = { "invalid_request_error", "invalid_request", "invalid_request_error", "The request is not valid HTTP." },
    [401] = { "invalid_request_error", "invalid_api_key", "authentication_error" },
    [404] = { "invalid_request_error", "unknown_url", "not_found_error" },
    [405] = { "invalid_request_error", "method_not_allowed", "invalid_request_error" },
    [408] = { "invalid_request_error", "request_timeout", "invalid_request_error" },
    [413] = { "invalid_request_error", "request_too_large", "request_too_large" },
    [414] = { "invalid_request_error", "uri_too_long", "invalid_request_error", "The address is too long." },
    [415] = { "invalid_request_error", "unsupported_media_type", "invalid_request_error" },
    [429] = { "rate_limit_error", "rate_limit_exceeded", "rate_limit_error" },
    [500] = { "server_error", "gateway_error", "api_error", "The gateway failed; its log has the reason." },
    [502] = { "server_error", "router_unavailable", "api_error" },
    [503] = { "server_error", "gateway_unavailable", "overloaded_error" },
    [504] = { "server_error", "router_timeout", "api_error", "The gateway's router did not answer in time." },
}

local function is_anthropic()
    return ngx.var.uri:sub(1, #ANTHROPIC) == ANTHROPIC
end

-- An error as an event of a stream whose head is sent already. `text` is JSON.
local function event(status, text)
    ngx.ctx.failed = status
    ngx.print((is_anthropic() and "event: error\n" or "") .. "data: " .. text:gsub("[\r\n]+", " ") .. "\n\n")
    return ngx.exit(ngx.HTTP_OK)
end

local function send(status, text)
    if ngx.headers_sent then
        return event(status, text)
    end
    -- The proxy may answer itself although an engine was asked before. Its own headers must reach the client.
    ngx.ctx.own_answer = true
    ngx.status = status
    ngx.header["Content-Type"] = "application/json"
    ngx.header["Content-Length"] = #text
    ngx.print(text)
    -- The status 408 given to ngx.exit would close the connection before the answer is sent.
    return ngx.exit(ngx.HTTP_OK)
end

-- cjson writes a slash as \/, which people find hard to read.
local function encode(value)
    return (cjson.encode(value):gsub("\\/", "/"))
end

-- `text` is JSON.
function answers.json(text)
    return send(200, text)
end

-- Ends the request. `options` may have code (instead of the usual one), param and retry_after in seconds.
function answers.refuse(status, message, options)
    options = options or {}
    local kind = KINDS[status] or KINDS[500]
    if options.retry_after and not ngx.headers_sent then
        ngx.header["Retry-After"] = options.retry_after
    end
    if is_anthropic() then
        return send(status, encode({ type = "error", error = { type = kind[3], message = message } }))
    end
    local code, param = options.code or kind[2], options.param or cjson.null
    return send(status, encode({ error = { type = kind[1], code = code, message = message, param = param } }))
end

local function message_of(value)
    local inner = type(value.error) == "table" and value.error or value
    return type(inner.message) == "string" and inner.message or nil
end

-- Ends a stream whose head is sent already with an error of the router or of an engine, which is `text`. SGLang writes
-- its fields at the top, where clients of streams do not look for an error.
function answers.pass_on(status, text)
    local value = cjson.decode(text)
    value = type(value) == "table" and value or {}
    local named = type(value.error) == "table" or type(value.error) == "string" and value.error ~= ""
    if named and (value.type == "error" or not is_anthropic()) then
        return event(status, text)
    end
    local message = message_of(value)
    if message and not is_anthropic() then
        return event(status, encode({ error = value }))
    end
    message = message or string.format("The answer had the status %d and no message that can be read.", status)
    return answers.refuse(status, message, { code = "answer_failed" })
end

function answers.no_router()
    return answers.refuse(502, "The gateway's router does not answer. Try again.", { retry_after = 1 })
end

-- For requests that nginx refuses before or beside our own code.
function answers.of_nginx()
    local status = ngx.status
    local kind = KINDS[status]
    if status == 413 then
        return answers.too_large(tonumber(ngx.var.http_content_length), tonumber(ngx.var.qwen_max_body_bytes))
    end
    if status == 502 then
        return answers.no_router()
    end
    return answers.refuse(status, kind and kind[4] or "The request was refused.")
end

function answers.too_large(bytes, limit)
    local size = bytes and string.format("has %.0f bytes", bytes) or "is too large"
    return answers.refuse(413, string.format("The request body %s; at most %.0f bytes are allowed.", size, limit))
end

-- The same answer for a model that does not exist and for one that the tenant may not ask for.
function answers.no_model(model)
    local message = "No worker available for model '" .. model .. "'"
    return answers.refuse(404, message, { code = "model_not_found" })
end

function answers.no_route()
    return answers.refuse(404, "Invalid URL (" .. ngx.req.get_method() .. " " .. ngx.var.uri:sub(1, 200) .. ")")
end

function answers.wrong_method(allowed)
    ngx.header["Allow"] = allowed
    return answers.refuse(405, "This address answers " .. allowed .. ", not " .. ngx.req.get_method() .. ".")
end

return answers
