-- Adapters of a model. Clients ask for MODEL:ADAPTER.
--
-- The router knows only MODEL: one address can have few names in it. So a request gets the name of its model, and the
-- adapter in the field lora_path of SGLang. SGLang's answer has the name that it was asked for, so the client's own name
-- replaces that.
local cjson = require "cjson.safe"

local adapters = {}

-- Where SGLang reads lora_path, and the router passes it on.
adapters.ROUTES = { ["/v1/chat/completions"] = true, ["/v1/completions"] = true }
adapters.WHERE = "/v1/chat/completions and /v1/completions"

-- A line of a stream that is longer does not wait for its end. Every piece is searched together with what waits, so that
-- an engine that writes single bytes without a line break would cost this number squared.
local LONGEST_LINE = 1024
-- White space around the colon of a field.
local SPACE_BYTES = 16

-- The model, and the adapter or nil. No served name has a colon.
function adapters.split(name)
    local model, adapter = name:match("^([^:]+):(.+)$")
    return model or name, adapter
end

local function encode(text)
    return (cjson.encode(text):gsub("\\/", "/"))
end

-- What stands in the body in place of the client's name.
function adapters.fields(ticket)
    return encode(ticket.model) .. ',"lora_path":' .. encode(ticket.adapter)
end

-- Before the first piece of an answer.
function adapters.renaming(ticket)
    local written = encode(ticket.model):gsub("%W", "%%%0")
    return {
        pattern = '("model"%s*:%s*)' .. written,
        name = encode(ticket.name),
        reach = #ticket.model + #'"model":""' + SPACE_BYTES,
        kept = "",
    }
end

-- A piece of an answer with the client's name. The end of the piece waits if the name may go on in the next one. Inside
-- a JSON string the quotes are escaped, so that text of the model never matches.
function adapters.renamed(answer, text, last)
    local rename = answer.rename
    local all = (rename.kept .. text):gsub(rename.pattern, function(field)
        return field .. rename.name
    end)
    if last then
        rename.kept = ""
        return all
    end
    local stop = math.max(0, #all - rename.reach)
    if answer.stream then
        -- The engine writes whole lines, so that nothing waits.
        local line = all:match("^.*()\n") or 0
        stop = #all - line > LONGEST_LINE and stop or line
    end
    rename.kept = all:sub(stop + 1)
    return all:sub(1, stop)
end

return adapters
