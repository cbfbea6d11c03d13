// Sends what Amazon SNS sends, each approved by AWS' own validator (`sns-validator`) where it is good.
//
// node sns.mjs HOOK TOPIC HOST PORT TLS_CERT SIGNING_KEY
//
// HOST, at PORT of this machine, has the certificate that goes with the key (aws.mjs). Prints one line of JSON: {"<case>": status}.
import { createSign, generateKeyPairSync } from "node:crypto";
import { readFileSync } from "node:fs";
import https from "node:https";
import tls from "node:tls";
import Validator from "sns-validator";

const [hook, topic, host, port, cert, keyFile] = process.argv.slice(2);
const key = readFileSync(keyFile);
const HOUR = 3_600_000;
const BOTH = ["Message", "MessageId", "Timestamp", "TopicArn", "Type"];

// The validator asks for the certificate at its right address.
https.globalAgent.createConnection = ({ servername }, connected) =>
  tls.connect({ port, host: "127.0.0.1", servername, ca: readFileSync(cert) }, connected);

function signed(message, by = key) {
  const members = message.Type === "Notification" ? [...BOTH, "Subject"] : [...BOTH, "SubscribeURL", "Token"];
  const signer = createSign(message.SignatureVersion === "1" ? "RSA-SHA1" : "RSA-SHA256");
  for (const member of members.sort()) {
    if (member in message) signer.update(`${member}\n${message[member]}\n`);
  }
  return { ...message, Signature: signer.sign(by, "base64") };
}

const base = (more) => ({
  TopicArn: topic,
  Timestamp: new Date().toISOString(),
  SignatureVersion: "2",
  SigningCertURL: `https://${host}/SimpleNotificationService-1.pem`,
  ...more,
});
const notification = (more) =>
  base({ Type: "Notification", MessageId: "m-1", Message: '{"order":\n7, "by": "Zoë"}', Subject: "a new order", ...more });
const confirmation = (more) =>
  base({
    Type: "SubscriptionConfirmation",
    MessageId: "m-0",
    Message: "You have chosen to subscribe to the topic.",
    SubscribeURL: `https://${host}/?Action=ConfirmSubscription&TopicArn=${topic}&Token=t0`,
    Token: "t0",
    ...more,
  });

async function post(message, change = (text) => text) {
  const response = await fetch(hook, {
    method: "POST",
    headers: { "content-type": "text/plain; charset=UTF-8", "x-amz-sns-message-type": message.Type },
    body: change(JSON.stringify(message)),
  });
  await response.arrayBuffer();
  return response.status;
}

async function postApproved(message) {
  await new Promise((resolve, reject) => {
    new Validator().validate(message, (error) => (error ? reject(error) : resolve()));
  });
  return post(message);
}

function withoutMember(member, { [member]: _, ...rest }) {
  return rest;
}

const at = (apart) => new Date(Date.now() + apart).toISOString();
const good = signed(notification({}));
const statuses = {
  confirm: await postApproved(signed(confirmation({}))),
  good: await postApproved(good),
  again: await post(good),
  "good, by SHA-1": await postApproved(signed(notification({ SignatureVersion: "1", MessageId: "m-2" }))),
  "good, without a subject": await postApproved(signed(withoutMember("Subject", notification({ MessageId: "m-3" })))),
  // The validator leaves out the token here, which AWS' documentation says is signed.
  unsubscribed: await post(signed(confirmation({ Type: "UnsubscribeConfirmation", MessageId: "m-4" }))),
  body: await post(good, (text) => text.replace("a new order", "b new order")),
  old: await post(signed(notification({ Timestamp: at(-8 * HOUR) }))),
  future: await post(signed(notification({ Timestamp: at(8 * HOUR) }))),
  wrong: await post(signed(notification({}), generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey)),
  replay: await post({ ...good, MessageId: "fresh" }),
  "another version's digest": await post({ ...good, SignatureVersion: "1" }),
  "another topic": await post(signed(notification({ TopicArn: `${topic}-2` }))),
  "a certificate from elsewhere": await post(signed(notification({ SigningCertURL: "https://evil.example/a.pem" }))),
  "no certificate there": await post(signed(notification({ SigningCertURL: `https://${host}/none.pem` }))),
  "a subscription elsewhere": await post(signed(confirmation({ SubscribeURL: "https://evil.example/?Action=ConfirmSubscription" }))),
  "a confirmation that nobody signed": await post({ ...confirmation({}), Signature: good.Signature }),
};
for (const member of ["Signature", "SigningCertURL", "Timestamp", "TopicArn", "SignatureVersion", "MessageId"]) {
  statuses[`without ${member}`] = await post(withoutMember(member, good));
}
console.log(JSON.stringify(statuses));
process.exit(0);
