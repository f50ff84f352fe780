# Latchkey in production: needs DATABASE_URL, LATCHKEY_ISSUER and LATCHKEY_KEY_ENCRYPTION_KEY (or …_FILE), and writes
# to no file, so that it runs with a read-only root.
FROM node:24-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
COPY src/guard/package.json src/guard/
COPY src/client/package.json src/client/
RUN npm ci --omit=dev

# What the page at /docs shows itself with is a tool of development in package.json: its package counts installations.
FROM dependencies AS docs-page
RUN npm ci --ignore-scripts

FROM node:24-slim
ENV NODE_ENV=production PORT=3000
WORKDIR /app
COPY --from=dependencies /app/node_modules node_modules
COPY package.json LICENSE ./
COPY migrations migrations
COPY views views
COPY --from=docs-page /app/node_modules/swagger-ui-dist/swagger-ui-bundle.js \
  /app/node_modules/swagger-ui-dist/swagger-ui.css \
  /app/node_modules/swagger-ui-dist/oauth2-redirect.js \
  /app/node_modules/swagger-ui-dist/LICENSE \
  /app/node_modules/swagger-ui-dist/NOTICE \
  views/swagger-ui/
COPY src src
USER node
EXPOSE 3000
# Alive, not ready: an outage of the database must not restart anybody.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["node", "-e", "fetch(`http://127.0.0.1:${process.env.PORT}/health/live`).then((answer) => process.exit(answer.ok ? 0 : 1), () => process.exit(1))"]
CMD ["node", "src/latchkey.mjs", "serve"]
