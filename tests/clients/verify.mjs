// The libraries that receivers verify webhooks with, as they are. What they read and write: see verify.py.
import { createInterface } from "node:readline";
import { Webhook as StandardWebhook } from "standardwebhooks";
import { Webhook as SvixWebhook } from "svix";
import twilioLibrary from "twilio";

const libraries = {
  standardwebhooks({ key, body, headers }) {
    new StandardWebhook(key).verify(body, headers);
    return true;
  },
  svix({ key, body, headers }) {
    new SvixWebhook(key).verify(body, headers);
    return true;
  },
  twilio({ key, body, headers, url }) {
    const signature = headers["x-twilio-signature"] ?? "";
    if (!(headers["content-type"] ?? "").startsWith("application/x-www-form-urlencoded")) {
      return url.includes("bodySHA256=") && twilioLibrary.validateRequestWithBody(key, signature, url, body);
    }
    const parameters = {};
    for (const [name, value] of new URLSearchParams(body)) {
      parameters[name] = name in parameters ? [parameters[name], value].flat() : value;
    }
    return twilioLibrary.validateRequest(key, signature, url, parameters);
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  let answer;
  try {
    answer = { valid: libraries[request.library](request) };
  } catch (fault) {
    answer = { valid: false, error: String(fault) };
  }
  console.log(JSON.stringify(answer));
}
